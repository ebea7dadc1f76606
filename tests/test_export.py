"""`python -m llm export`: what it writes for llama.cpp, Ollama and the hub, and what it refuses in a sentence."""

import json
import re
import shutil

import pytest
import torch

from llm import bases
from llm.__main__ import main
from llm.adapters import load_adapter, save_adapter
from llm.errors import AdapterError, BaseError
from llm.text import chat

for package in ("transformers", "gguf", "huggingface_hub"):
    pytest.importorskip(package)
from tiny_llama import CHATML, IDS, adapted, folder_of, gguf_of  # noqa: E402

from llm.export.gguf import write_merged  # noqa: E402
from llm.export.llama_cpp import Server  # noqa: E402
from llm.export.modelfile import go_template  # noqa: E402

HI = [dict(role="user", content="Hi")]
ANOTHER = CHATML.replace("im_start", "turn")
TALK = [dict(role="system", content="Be brief."), *HI, dict(role="assistant", content="Hi."), *HI]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return folder_of("Llama", tmp_path_factory.mktemp("llama") / "small")


@pytest.fixture(scope="module")
def base_gguf(llama, tmp_path_factory):
    return gguf_of(bases.load(llama), tmp_path_factory.mktemp("gguf") / "small.gguf")


def saved(base, folder, report=None):
    save_adapter(base.model, folder, base.origin)
    if report is not None:
        (folder / "run.json").write_text(json.dumps(dict(base=str(base.name), data="chats.jsonl") | report))
    return folder


def run(capsys, *args, code=0):
    """What a command says, on stdout or as its sentence."""
    assert main(["export", *map(str, args)]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


# the files for llama.cpp, as the command writes them


def test_an_adapter_and_its_merged_model_come_with_a_modelfile(llama, base_gguf, tmp_path, capsys):
    pytest.importorskip("xllamacpp")
    base = adapted(llama)
    folder = saved(base, tmp_path / "mine", dict(chat=True))
    run(capsys, folder, "--out", tmp_path / "a")
    run(capsys, folder, "--format", "merged", "--dtype", "float32", "--gguf", base_gguf, "--out", tmp_path / "m")
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"adapter.gguf", "Modelfile"}
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"model.gguf", "Modelfile"}
    with torch.no_grad():
        wanted = base.model(torch.tensor([IDS])).logits[0, -1].log_softmax(-1)
    for files in ((base_gguf, tmp_path / "a" / "adapter.gguf"), (tmp_path / "m" / "model.gguf",)):
        with Server(*files, context=256) as it:
            assert (it.logprobs(IDS) - wanted).abs().max() < 1e-4
            assert it.opening(TALK) == chat.opening(TALK, base.tokenizer)
    lines = (tmp_path / "m" / "Modelfile").read_text().splitlines()
    assert lines[1] == "FROM ./model.gguf" and 'PARAMETER stop "<|im_end|>"' in lines
    assert "# FROM ./small.gguf" in lines and lines.index("# ADAPTER ./adapter.gguf") > lines.index("FROM ./model.gguf")


@pytest.mark.parametrize("template, own", [("plain", CHATML), (ANOTHER, CHATML), (None, ANOTHER), (None, None)])
def test_the_merged_model_has_the_template_that_the_run_has_taught(llama, base_gguf, tmp_path, capsys, template, own):
    pytest.importorskip("xllamacpp")
    shutil.copytree(llama, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(own or "")
    base = adapted(tmp_path / "base")
    folder = saved(base, tmp_path / "mine", dict(chat=True, template=template))
    run(capsys, folder, "--format", "merged", "--gguf", base_gguf, "--out", tmp_path / "m")
    with Server(tmp_path / "m" / "model.gguf", context=256) as server, Server(base_gguf, context=256) as bare:
        ours = chat.opening(TALK, chat.with_template(base.tokenizer, template) if template else base.tokenizer)
        assert server.opening(TALK) == ours != bare.opening(TALK)


def test_a_gguf_of_another_model_is_refused_with_what_differs(llama, base_gguf, tmp_path):
    bases.save(bases.load(folder_of("Llama", tmp_path / "other", rms_norm_eps=1e-5)), tmp_path / "same")
    changes = {
        "its blk.1.ffn_up.weight is another": dict(**{"blk.1.ffn_up.weight": lambda t: -t}),
        "its blk.0.attn_q.weight is another": dict(turned=False),
    }
    for said, options in changes.items():
        file = gguf_of(bases.load(llama), tmp_path / "b.gguf", **options)
        with pytest.raises(BaseError, match=said):
            write_merged(adapted(llama), file, tmp_path / "m.gguf")
    with pytest.raises(BaseError, match="its architecture is 'qwen2'"):
        write_merged(adapted(llama), gguf_of(bases.load(llama), tmp_path / "b.gguf", "qwen2"), tmp_path / "m.gguf")
    (tmp_path / "no.gguf").write_text("no")
    with pytest.raises(BaseError, match="cannot be read as a GGUF"):
        write_merged(adapted(llama), tmp_path / "no.gguf", tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "method, scheme, said", [("dora", None, "this is dora"), ("ia3", None, "this is ia3"), ("lora", "nf4", "four bits")]
)
def test_what_llama_cpp_cannot_add_is_refused_with_what_works_instead(llama, tmp_path, capsys, method, scheme, said):
    folder = saved(adapted(llama, method, scheme), tmp_path / "mine", dict(quantize=scheme))
    error = run(capsys, folder, "--out", tmp_path / "a", code=1)
    assert said in error and "--format merged" in error and not (tmp_path / "a").exists()


def test_a_base_that_llama_cpp_or_this_course_cannot_name_is_refused(tiny, tmp_path, capsys):
    folder = saved(adapted(tiny), tmp_path / "mine", {})
    assert "GPT of this course" in run(capsys, folder, "--out", tmp_path / "a", code=1)
    assert "GPT of this course" in run(capsys, folder, "--format", "merged", "--out", tmp_path / "a", code=1)
    assert "choose one of gguf, merged, hub" in run(capsys, folder, "--format", "onnx", code=1)


# Ollama's template


def said_by_ollama(template, messages):
    """A Go template of the few words that are written here, through Jinja's."""
    import jinja2

    words = {"{{ if not .System }}": "{% if not system %}", "{{ range .Messages }}": "{% for m in messages %}"}
    words |= {
        f'{{{{ {word} eq .Role "{role}" }}}}': f"{{% {jinja} m.role == '{role}' %}}"
        for word, jinja in (("if", "if"), ("else if", "elif"))
        for role in ("system", "user")
    }
    words |= {"{{ .Content }}": "{{ m.content }}", "{{ else }}": "{% else %}"}
    for go, jinja in words.items():
        template = template.replace(go, jinja)
    ends = iter(re.findall(r"\{% (if|for)", template))  # each block's end, innermost first
    open_, out = [], []
    for part in re.split(r"(\{% if|\{% for|\{\{ end \}\})", template):
        if part.startswith("{% "):
            open_.append(part[3:])
        out.append(f"{{% end{open_.pop()} %}}" if part == "{{ end }}" else part)
    assert list(ends) and not open_
    system = [m["content"] for m in messages if m["role"] == "system"]
    return (
        jinja2.Environment(keep_trailing_newline=True)
        .from_string("".join(out))
        .render(messages=messages, system=system)
    )


SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are"
    " SmolLM<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [CHATML, SMOL, "plain"])
def test_ollamas_template_writes_what_the_chat_template_writes(llama, template):
    tokenizer = chat.with_template(bases.load(llama).tokenizer, template)
    for messages in (HI, TALK, TALK[1:]):
        assert said_by_ollama(go_template(tokenizer), messages) == chat.render(messages, tokenizer, ask=True)[0]


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
        CHATML.replace("m['content']", "(m['content'] if loop.last else '...')"),
        CHATML.replace("assistant\n", 'assistant\n"""'),
    ],
)
def test_a_template_that_has_no_plain_form_gets_a_comment_instead(llama, base_gguf, tmp_path, capsys, template):
    assert go_template(chat.with_template(bases.load(llama).tokenizer, template)) is None
    folder = saved(adapted(llama), tmp_path / "mine", dict(chat=True, template=template))
    run(capsys, folder, "--out", tmp_path / "a")
    written = (tmp_path / "a" / "Modelfile").read_text()
    assert "# no TEMPLATE" in written and "\nTEMPLATE" not in written


@pytest.mark.parametrize("completes", [True, False])
def test_what_saw_no_conversation_is_asked_with_the_bare_prompt(llama, tmp_path, capsys, completes):
    folder = saved(adapted(llama), tmp_path / "mine", dict(completes=completes))
    run(capsys, folder, "--out", tmp_path / "a")
    template = '"""{{ .Prompt }}' + "\n" * completes + '"""'
    assert f"TEMPLATE {template}\n" in (tmp_path / "a" / "Modelfile").read_text()


# a folder for the hub

REPORT = dict(
    rank=4, lr=1e-3, steps=30, curve=[[0, 3.5], [10, 2.25], [30, 2.75]], best=dict(step=10, heldout=2.25), digest="ab12"
)


def test_a_folder_for_the_hub_names_the_base_and_the_measured_losses_and_no_path_of_this_machine(
    llama, tmp_path, capsys
):
    import huggingface_hub

    base = adapted(llama)
    folder = saved(base, tmp_path / "mine", REPORT)
    assert "--base-id" in run(capsys, folder, "--format", "hub", "--out", tmp_path / "h", code=1)
    assert not (tmp_path / "h").exists()
    options = ("--base-id", "someone/small", "--licence", "mit")
    run(capsys, folder, "--format", "hub", "--out", tmp_path / "h", *options)
    hub = tmp_path / "h"
    for file in hub.iterdir():
        assert str(tmp_path).encode() not in (content := file.read_bytes()) and b"small-machine" not in content
        assert str(llama).encode() not in content and llama.parent.name.encode() not in content, file
    assert json.loads((hub / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/small"
    card = huggingface_hub.ModelCard((hub / "README.md").read_text())
    assert card.data.base_model == "someone/small" and card.data.license == "mit" and card.data.library_name == "peft"
    for part in ("`chats.jsonl`", "`ab12`", "| step 0 | 3.5000 |", "step 10, the best", "2.2500", "| rank | 4 |"):
        assert part in card.text, part


def test_what_went_to_the_hub_opens_here_and_in_peft(llama, tmp_path, capsys):
    peft, base = pytest.importorskip("peft"), adapted(llama)
    run(capsys, saved(base, tmp_path / "mine", REPORT), "--format", "hub", "--out", tmp_path / "h", "--base-id", "a/b")
    wanted = base.model(torch.tensor([IDS])).logits
    theirs = peft.PeftModel.from_pretrained(bases.load(llama).model, tmp_path / "h")
    assert torch.allclose(theirs(torch.tensor([IDS])).logits, wanted, atol=1e-4)
    again = load_adapter(bases.load(llama).model, tmp_path / "h")
    assert torch.allclose(again(torch.tensor([IDS])).logits, wanted, atol=1e-4)


def test_a_card_without_a_report_says_what_is_not_known(llama, tmp_path, capsys):
    run(
        capsys, saved(adapted(llama), tmp_path / "mine"), "--format", "hub", "--out", tmp_path / "h", "--base-id", "a/b"
    )
    card = (tmp_path / "h" / "README.md").read_text()
    assert "license: unknown" in card and "not declared" in card and "no held-out loss" in card
    assert not (tmp_path / "h" / "run.json").exists()


def test_an_adapter_of_a_named_base_has_its_public_id(tmp_path):
    from llm.export.model_card import card, public_name

    base = adapted(folder_of("Llama", tmp_path / "m"))
    folder = saved(base, tmp_path / "mine", {})
    (folder / "run.json").write_text('{"base": "smollm2"}')
    assert public_name(folder) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "decoded from four bits" in card(folder, {"base": "smollm2"}, "a/b")
    assert "decoded from four bits" not in card(folder, {"base": "gpt2"}, "a/b")
    assert public_name(folder, "other/one") == "other/one"
    (folder / "run.json").unlink()
    with pytest.raises(AdapterError, match="--base-id"):
        public_name(folder, "/root/models")
