"""The site: the page that trains, every notebook to read, and the evidence, as static files that any host can serve.

Nothing in it is fetched from elsewhere, and every address is relative, so a sub-path will do. The notebooks' explorers
are alive on it, because their stored outputs are scripts that need no kernel.
"""

import html
import re
import shutil
from pathlib import Path

from llm import paths
from llm.bases import load_base
from llm.course import colab
from llm.course.contents import NOTEBOOKS, PARTS, file_name, number
from llm.course.page.weights import write_weights

HERE = Path(__file__).parent
MERGES = "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"  # vocab.bpe, under the name that tiktoken's cache gives it
NOTEBOOK = """
{%- extends 'basic/index.html.j2' -%}
{% block codecell %}{% if 'bootstrap' not in cell.metadata.get('tags', []) %}{{ super() }}{% endif %}{% endblock %}
{% block input_group %}
{% if cell.metadata.get('jupyter', {}).get('source_hidden') %}<details class="code"><summary>code</summary>{{ super() }}</details>
{% else %}{{ super() }}{% endif %}
{% endblock %}
{% block in_prompt %}{% endblock %}
{% block output_prompt %}{% endblock %}
"""
READING = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{root}page.css">
<link rel="stylesheet" href="{root}notebook.css">
</head>
<body>
<main class="notebook">
<nav>{nav}</nav>
{body}
<nav>{nav}</nav>
</main>
</body>
</html>
"""


def write_site(to: Path) -> int:
    """Write the whole site into the folder `to`; returns its size in bytes. Needs nbconvert, which JupyterLab brings."""
    write_page(to)
    (to / "notebooks").mkdir(exist_ok=True)
    (to / "notebook.css").write_text(
        (HERE / "notebook.css").read_text(encoding="utf-8") + _highlighting(), encoding="utf-8"
    )
    for i, notebook in enumerate(NOTEBOOKS):
        name = file_name(notebook.subject)
        beside = [
            ("before", NOTEBOOKS[i - 1] if i else None),
            ("next", NOTEBOOKS[i + 1] if i + 1 < len(NOTEBOOKS) else None),
        ]
        links = ['<a href="../index.html">The page that trains</a>', '<a href="../results.html">The evidence</a>']
        links += [
            f'{word}: <a href="{_page(other.subject)}">{html.escape(other.title)}</a>'
            for word, other in beside
            if other
        ]
        body = _as_html(paths.NOTEBOOKS / name)
        page = READING.format(title=html.escape(notebook.title), root="../", nav=" · ".join(links), body=body)
        (to / "notebooks" / _page(notebook.subject)).write_text(page, encoding="utf-8")
    _write_results(to)
    return sum(path.stat().st_size for path in to.rglob("*") if path.is_file())


def write_page(to: Path) -> None:
    """Write the page that trains, with all that it needs, into the folder `to`."""
    to.mkdir(parents=True, exist_ok=True)
    for name in ("page.css", "kernels.wasm"):
        shutil.copy(HERE / name, to / name)
    index = (HERE / "index.html").read_text(encoding="utf-8").replace("<!-- notebooks -->", _contents())
    if address := colab.repository():
        index = index.replace("<footer><p>", f'<footer><p><a href="{html.escape(address)}">The course itself</a>. ')
    (to / "index.html").write_text(index, encoding="utf-8")
    shutil.copytree(HERE / "src", to / "src", dirs_exist_ok=True)
    shutil.copy(HERE.parent / "widgets" / "bundle.js", to / "instruments.js")
    (to / "plays").mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(paths.DATA / "adapters" / "plays" / name, to / "plays" / name)
    shutil.copy(paths.TOKENIZER / MERGES, to / "vocab.bpe")
    write_weights(load_base(own=None), to / "base.safetensors")


def _page(subject):
    return file_name(subject).removesuffix(".ipynb") + ".html"


def _contents():
    def line(notebook):
        link = f'<a href="notebooks/{_page(notebook.subject)}">{number(notebook.subject)} {html.escape(notebook.title)}</a>'
        return f"<li>{link}: {html.escape(notebook.does)}</li>"

    return "".join(
        f'<h3>{html.escape(part)}</h3><ul class="notebooks">{"".join(map(line, notebooks))}</ul>'
        for part, notebooks in PARTS.items()
    )


def _as_html(path):
    """A stored notebook as HTML: code, outputs, folded what is folded there, links to the site's own pages."""
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(raw_template=NOTEBOOK, exclude_anchor_links=True).from_filename(str(path))
    return _relinked(body)


def _relinked(body):
    body = re.sub(r'href="(?:\.\./notebooks/|notebooks/)?(\d\d_\w+)\.ipynb', r'href="\1.html', body)
    return re.sub(r'href="\.\./README\.md(#[^"]*)?"', 'href="../index.html"', body)


def _write_results(to):
    """data/results/README.md, with its pictures, as results.html."""
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    results = paths.RESULTS / "README.md"
    body = markdown2html_mistune(results.read_text(encoding="utf-8"))
    for picture in set(re.findall(r'src="([\w./-]+\.png)"', body)):
        (to / "pictures").mkdir(exist_ok=True)
        shutil.copy(results.parent / picture, to / "pictures" / Path(picture).name)
        body = body.replace(f'src="{picture}"', f'src="pictures/{Path(picture).name}"')
    body = re.sub(r'href="[./]*notebooks/(\d\d_\w+)\.ipynb', r'href="notebooks/\1.html', body)
    body = re.sub(
        r'<a href="(?!#|notebooks/|https?:)[^"]*"[^>]*>(.*?)</a>', r"\1", body
    )  # files that are not on the site
    nav = '<a href="index.html">The page that trains</a>'
    (to / "results.html").write_text(
        READING.format(title="The evidence", root="", nav=nav, body=body), encoding="utf-8"
    )


def _highlighting():
    """Colors of code, on light and on dark."""
    from pygments.formatters import HtmlFormatter

    rules = [
        HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight") for style in ("default", "monokai")
    ]
    return f"\n{rules[0]}\n@media (prefers-color-scheme: dark) {{\n{rules[1]}\n}}\n"
