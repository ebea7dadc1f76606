"""What every notebook keeps: run once from the top, small cells, short prose, links that lead somewhere, no machine's paths."""

import re
import tempfile
from pathlib import Path
from statistics import median, quantiles

import nbformat
import pytest

from llm.course import contents

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# an absolute path of a machine that somebody worked on; addresses on the web and closing tags are none
ABSOLUTE = re.compile(r"(?<![\w:/.~*<>)\]])/[a-zA-Z][\w.-]*/[\w.-]+|(?<!\w)[A-Z]:\\\w")

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def cells(path, kind):
    return [cell for cell in read(path).cells if cell.cell_type == kind]


def shown(cell):
    """The text of a cell's outputs; pictures are none, nor are an explorer's matrices."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from output.get("traceback", [])
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/png"):
                yield re.sub(r'\bbase64,[^"]*|"int\d+":"[^"]*"', "", str(data))


def prose(source):
    """The words of a markdown cell that are read: no code block, no table, no fold's tags."""
    source = re.sub(r"```.*?```|<[^>]*>", " ", source, flags=re.S)
    source = "\n".join(line for line in source.splitlines() if not line.startswith(("|", "    ")))
    return [word for word in source.split() if re.search(r"\w", word)]


def test_it_is_valid_of_format_4_5_and_for_python_3(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"


def test_it_was_run_once_from_the_top_with_outputs_and_without_an_error(path):
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert sum(bool(cell.outputs) for cell in code) > len(code) / 2


def test_no_output_is_a_complaint_on_stderr(path):
    for cell in cells(path, "code"):
        said = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stderr")
        assert "Warning" not in said and "Traceback" not in said, said


def test_no_widget_state_is_stored(path):
    assert "widgets" not in read(path).metadata


def test_code_cells_are_short(path):
    written = [cell for cell in cells(path, "code") if "bootstrap" not in cell.metadata.get("tags", [])]  # folded away
    lines = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in written]
    assert median(lines) <= 6 and quantiles(lines, n=10, method="inclusive")[-1] <= 20, lines


def test_no_line_of_code_is_cut_off_beside_a_file_list(path):
    wide = [line for cell in cells(path, "code") for line in cell.source.splitlines() if len(line) > 88]
    assert not wide, wide


def test_no_cell_ends_in_a_semicolon(path):
    """It hides a value in JupyterLab, and not where a cell is run without its history, as by nbval."""
    ends = [re.sub(r"\s+#.*$", "", cell.source.rstrip().splitlines()[-1]) for cell in cells(path, "code")]
    assert not [end for end in ends if end.endswith(";")]


def test_markdown_cells_have_110_words_at_most(path):
    for cell in cells(path, "markdown"):
        assert len(prose(cell.source)) <= 110, cell.source[:80]


def test_no_formula_is_in_tex(path):
    """Pages of the site would have to fetch what draws it."""
    assert not any(re.search(r"\$[^$\n]+\$", cell.source) for cell in cells(path, "markdown"))


def test_it_takes_an_hour_at_most_fifty_code_cells_and_two_thousand_words(path):
    assert len(cells(path, "code")) <= 50
    assert sum(len(prose(cell.source)) for cell in cells(path, "markdown")) <= 2000
    assert next(n.minutes for n in contents.NOTEBOOKS if contents.file_name(n.subject) == path.name) <= 60


def test_it_begins_with_a_title_then_imports_and_seeds_what_it_draws(path):
    assert read(path).cells[0].cell_type == "markdown" and read(path).cells[0].source.startswith("# ")
    _bootstrap, *code = [cell.source for cell in cells(path, "code")]
    assert re.search(r"^(import|from) ", code[0], re.M) and any("seed" in source for source in code)


def test_its_claims_are_asserted_and_it_ends_with_what_to_try(path):
    code = "\n".join(cell.source for cell in cells(path, "code"))
    assert len(re.findall(r"^ *assert ", code, re.M)) >= 3
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    assert re.search(r"^## Try", text, re.M)


def test_a_predicted_result_stands_right_below_its_question_and_is_folded_until_the_reader_asks(path):
    every = read(path).cells
    results = [i for i, cell in enumerate(every) if cell.cell_type == "code" and ".compare(" in cell.source]
    assert results
    for i in results:
        assert re.search(r"^guess$", every[i - 1].source, re.M) and every[i].metadata.jupyter.outputs_hidden


def test_local_links_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(
            r"\]\((?!https?:|#|mailto:|attachment:)([^)#\s]+)|(?:src|href)=\"(?!https?:|#|data:)([^\"#]+)", cell.source
        ):
            target = "".join(target)
            assert (path.parent / target).exists(), f"{target} is not there"


def test_it_names_no_path_of_the_machine_that_it_was_run_on(path):
    here = {str(p) for p in (ROOT, ROOT.parent, Path.home(), Path(tempfile.gettempdir()))} - {"/"}
    for cell in read(path).cells:
        for text in (cell.source, *(shown(cell) if cell.cell_type == "code" else ())):
            assert not ABSOLUTE.search(text), ABSOLUTE.search(text).group()
            assert not [p for p in here if re.search(rf"(?<![\w.]){re.escape(p)}(?!\w)", text)]


def test_it_unpickles_nothing_installs_nothing_and_restores_no_shell(path):
    code = "\n".join(cell.source for cell in cells(path, "code"))
    assert not re.search(r"\bpickle\b|^\s*[!%](?!matplotlib|time)|weights_only=False", code, re.M)


def test_its_tags_are_those_that_the_course_knows(path):
    known = {"nbval-ignore-output", "nbval-skip", "raises-exception", "bootstrap", "exercise", "solution"}
    assert {tag for cell in read(path).cells for tag in cell.metadata.get("tags", [])} <= known
