"""The page's engine, run by Node: its losses, gradients, tokens and adapters against PyTorch, tiktoken and PEFT's format."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from llm import spectra
from llm.adapters import fingerprint, load_adapter, save_adapter
from llm.bases import load_base
from llm.course.page import rounded, site, write_weights
from llm.course.tasks import load_task, respond
from llm.lora import apply_lora, lora_layers
from llm.text.batches import UNSEEN
from llm.text.records import make_records, record_batches, words
from llm.tokenizer import GPT2
from llm.training import evaluate, schedule

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "tests" / "page" / "engine.mjs"
SCRIPTS = "Hello, world. We'll I've you're it's I'm he'd don't\n\n  x\tGröße Ærøskøbing Привет 東京都 한국어 עברית العربية हिन्दी ไทย 🙂👩‍🚀 ∑∞≠ 12345 a1b2 …"

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="no Node.js on this machine runs the page's scripts")


@pytest.fixture(scope="module")
def base():
    return rounded(load_base(own=None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page's weights in it, where Node reads a job and writes its answer."""
    folder = tmp_path_factory.mktemp("page")
    write_weights(load_base(own=None), folder / "base.safetensors")
    return folder


@pytest.fixture
def ask(folder):
    def asked(kind, **job):
        given = dict(kind=kind, weights="base.safetensors", merges=site.MERGES, **job)
        (folder / "job.json").write_text(json.dumps(given))
        subprocess.run(["node", ENGINE, folder], check=True, timeout=1200)  # against a hang
        return json.loads((folder / "answer.json").read_text())

    return asked


def adapted(model, seed, r):
    """A copy of the model with an adapter whose B is not zero."""
    torch.manual_seed(seed)
    model = apply_lora(rounded(model), r=r, alpha=8, scaling="alpha/r")
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.B, std=0.05)
    return model


def loss_of(model, x, y, chosen=None):
    """The head's loss in float64, because PyTorch's own in float32 is off by 1e-5 where 50,257 words are summed."""
    head, target = model.lm_head.weight, y[y != -100]
    if chosen:
        place = torch.full((50257,), -100)
        place[chosen] = torch.arange(len(chosen))
        head, target = head[chosen], place[target]
    hidden, _ = model.hidden(x)
    return F.cross_entropy(hidden[y != -100].double() @ head.double().T, target)


def batch(folder, seed, rows=16):
    """Rows of records as the page has them, 40 tokens, also in the folder."""
    x, y = (t[:, :40].contiguous() for t in next(record_batches(rows, 41, seed=seed)))
    save_file(dict(ids=x.float(), targets=y.float()), folder / "batch.safetensors")
    return x, y


@pytest.mark.parametrize(("seed", "r", "all_words"), [(0, 8, False), (1, 1, False), (2, 16, False), (0, 4, True)])
def test_loss_and_gradients_are_pytorchs(base, folder, ask, seed, r, all_words):
    model, (x, y) = adapted(base, seed, r), batch(folder, seed)
    save_adapter(model, folder)
    chosen = None if all_words else ask("words")["ids"]
    loss = ask("step", words=chosen)["loss"]
    goal = loss_of(model.double(), x, y, chosen)  # the blocks, too: PyTorch's float32 gradients differ by processor
    goal.backward()
    assert abs(loss - goal.item()) < 1e-5
    found = load_file(folder / "gradients.safetensors")
    assert len(found) == 2 * len(lora_layers(model)) == 32
    for path, layer in lora_layers(model).items():
        for part in "AB":
            gradient = getattr(layer, part).grad.flatten()
            off = (found[f"{path}.{part}"] - gradient).abs().max() / gradient.abs().max()
            assert off < 1e-4, f"{path}.{part}: {off:.1e} of the largest"


def test_large_logits_leave_loss_and_gradients_finite_and_right(base, folder, ask):
    model, (x, y) = adapted(base, 0, 8), batch(folder, 3, rows=4)
    for layer in lora_layers(model).values():
        layer.B.data.mul_(40)
    save_adapter(model, folder)
    goal = loss_of(model, x, y).item()
    assert goal > 15
    assert ask("step", words=None)["loss"] == pytest.approx(goal, rel=1e-4)
    assert all(t.isfinite().all() for t in load_file(folder / "gradients.safetensors").values())


def test_the_control_has_pytorchs_gradients_of_the_final_norm(base, folder, ask):
    model, (x, y) = adapted(base, 4, 2), batch(folder, 4)
    save_adapter(model, folder)
    ask("step", words=None, learn="norm")
    norm = model.transformer.ln_f.requires_grad_(True)
    loss_of(model, x, y).backward()
    found = load_file(folder / "gradients.safetensors")
    for part, p in (("gain", norm.weight), ("bias", norm.bias)):
        assert (found[part] - p.grad).abs().max() < 1e-4 * p.grad.abs().max()


def test_the_tokenizer_is_tiktokens_on_a_text_of_every_script(ask):
    speeches = (ROOT / "README.md").read_text(encoding="utf-8")
    texts = [SCRIPTS, speeches, "", " ", "\n", " " * 7 + "x", "'s'S’s"]
    for text, (ids, back) in zip(texts, ask("tokens", texts=texts)):
        assert ids == GPT2.encode(text) and back == text


def test_its_records_are_the_courses_own_task(ask):
    found = ask("words")
    assert tuple(found["words"]) == words(common=True)
    shape = make_records(1, UNSEEN)[0]
    for record in found["records"]:
        answer = json.loads(record["answer"])
        assert list(answer) == list(json.loads(shape.answer)) and json.dumps(answer) == record["answer"]
        assert all(json.dumps(value) in record["sentence"] for value in answer.values())
        prompt, rest = GPT2.encode(record["sentence"] + "\n"), GPT2.encode(record["answer"])
        assert len(prompt) + len(rest) <= found["tokens"] and set(rest) <= set(found["ids"])


def test_the_words_after_a_prompt_are_ours_over_all_50257(base, ask):
    prompts = [GPT2.encode(text) for text in ("The people", 'Send "river" from "Angel" to "glass" at 7.\n', "x" * 300)]
    for ids, logits in zip(prompts, ask("logits", prompts=prompts)):
        with torch.no_grad():
            goal = base(torch.tensor([ids[-64:]]))[0, -1]
        torch.testing.assert_close(torch.tensor(logits), goal, atol=2e-3, rtol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_forty_steps_teach_the_task_and_the_adapter_opens_here_with_the_same_answers(base, folder, ask, seed):
    found = ask("train", rank=8, steps=40, rows=16, seed=seed, cuts=[0, 8])
    assert found["right"] >= 95 and found["base"] == 0 and found["numbers"] == 65_536
    assert found["cuts"] == [0, found["right"]]
    model = load_adapter(load_base(own=None), folder)  # the fingerprint is that of the original
    info = json.loads((folder / "adapter_config.json").read_text())
    assert (info["r"], info["lora_alpha"]) == (8, 8)
    held = found["held"][:10]
    assert sum(respond(model, "records", r["sentence"]).strip() == r["answer"] for r in held) >= 8


def test_an_adapter_of_ours_opens_there_and_says_the_same(base, folder, ask):
    model = adapted(base, 5, 4)
    x, y = batch(folder, 5)
    save_adapter(model, folder)
    with torch.no_grad():
        goal = loss_of(model, x, y).item()
    assert ask("step", words=None, learn="")["loss"] == pytest.approx(goal, abs=1e-5)


def test_what_is_no_adapter_for_this_model_gets_one_sentence(base, folder, ask):
    both, known = ["adapter_config.json", "adapter_model.safetensors"], fingerprint(load_base(own=None))
    model = adapted(base, 6, 2)

    def said(files=both, base=known):
        return ask("open", files=files, base=base)

    def saved(config=None, tensors=None, cut=None):
        save_adapter(model, folder)
        if config:
            path = folder / both[0]
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        if tensors:
            named = load_file(folder / both[1])
            tensors(named)
            save_file(named, folder / both[1])
        if cut is not None:
            (folder / both[1]).write_bytes((folder / both[1]).read_bytes()[:cut])

    saved()
    assert said(base="") == "" and said(base="another").startswith("This adapter was trained on another base")
    assert said(files=both[:1]) == "An adapter is two files, and adapter_model.safetensors is not among these."
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    for change, says in (
        (dict(config={"peft_type": "IA3"}), "something else"),
        (dict(config={"r": 1e9}), "a rank r from 1 to 64"),
        (dict(config={"lora_alpha": None}), "a number for lora_alpha"),
        (dict(config={"alpha_pattern": {"x": 1}}), "one rank and one alpha"),
        (dict(tensors=lambda t: t.update({name: torch.zeros(2, 7)})), "c_attn are missing, have another shape"),
        (dict(tensors=lambda t: t[name].fill_(float("nan"))), "not finite"),
        (dict(tensors=lambda t: t.pop(name)), "are missing"),
        (dict(tensors=lambda t: t.update(x=torch.zeros(2))), "x, which is no layer"),
        (dict(cut=1000), "longer than the file"),
        (dict(cut=3), "fewer than eight bytes"),
    ):
        saved(**change)
        assert says in said(base=""), change
    (folder / both[1]).write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert "longer than the file" in said(base="")


def test_its_adam_schedule_and_clipping_are_the_training_loops(folder, ask):
    torch.manual_seed(8)
    start, gradients = torch.randn(50), torch.randn(40, 50) * torch.logspace(-2, 1, 40)[:, None]
    save_file(dict(start=start, gradients=gradients), folder / "steps.safetensors")
    p = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([p], betas=(0.9, 0.95), weight_decay=0)
    for i, gradient in enumerate(gradients):
        p.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([p], 1.0)
        optimizer.param_groups[0]["lr"] = 0.01 * schedule(i, 40)
        optimizer.step()
    torch.testing.assert_close(torch.tensor(ask("adam")), p.detach(), atol=1e-5, rtol=0)


def test_singular_values_and_cuts_are_those_of_the_product(folder, ask):
    torch.manual_seed(7)
    A, B = torch.randn(128, 8), torch.randn(8, 384)
    A[:, 3] = A[:, 2]  # rank 7
    save_file(dict(A=A, B=B), folder / "factors.safetensors")
    found = ask("spectrum", scale=0.5)
    parts = spectra.decompose(0.5 * A @ B)
    s = torch.tensor(found["s"])
    torch.testing.assert_close(s[:7], parts.s[:7].float(), rtol=1e-4, atol=0)
    assert s[7] < 1e-3
    left, right = torch.tensor(found["left"]).view(128, 8), torch.tensor(found["right"]).view(8, 384)
    torch.testing.assert_close(left * s @ right, 0.5 * A @ B, atol=1e-3, rtol=0)
    torch.testing.assert_close((left[:, :3] * s[:3]) @ right[:3], parts.best(3).float(), atol=1e-3, rtol=0)


def test_two_adapters_are_one_of_the_sum_of_their_ranks(ask):
    parts = ask("mixed")
    products = [
        p["scale"] * torch.tensor(p["A"]).view(128, p["rank"]) @ torch.tensor(p["B"]).view(p["rank"], 512)
        for p in parts
    ]
    assert parts[2]["rank"] == 5
    torch.testing.assert_close(products[2], 0.3 * products[0] - products[1], atol=1e-5, rtol=1e-5)


def test_bytes_cost_the_base_next_to_nothing(base):
    for name in ("records", "shakespeare"):
        held = load_task(name, limit=1).heldout
        assert abs(evaluate(base, held) - evaluate(load_base(own=None), held)) < 0.01


def test_a_model_with_a_head_of_its_own_is_refused(tmp_path):
    model = load_base(own=None)
    model.lm_head.weight.data[0] += 1
    with pytest.raises(ValueError, match="this model has two"):
        write_weights(model, tmp_path / "x.safetensors")


def test_the_committed_kernels_are_what_their_source_compiles_to(tmp_path):
    if not shutil.which("npm"):
        pytest.skip("no npm on this machine")
    page = ROOT / "llm" / "course" / "page"
    for name in ("kernels.ts", "package.json", "package-lock.json"):
        shutil.copy(page / name, tmp_path / name)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=tmp_path, check=True, timeout=1200)
    subprocess.run(["npm", "run", "--silent", "build"], cwd=tmp_path, check=True, timeout=1200)
    assert (tmp_path / "kernels.wasm").read_bytes() == (page / "kernels.wasm").read_bytes()
