"""What llama.cpp makes of the files that are written for it, by log probabilities: its text would hide most mistakes."""

import pytest
import torch

from llm import bases
from llm.adapters import save_adapter
from llm.errors import AdapterError
from llm.export.gguf import write_adapter, write_merged
from llm.relatives import layers_of

for package in ("transformers", "gguf", "xllamacpp"):
    pytest.importorskip(package)
from tiny_llama import IDS, adapted, folder_of, gguf_of  # noqa: E402

from llm.export.llama_cpp import Server  # noqa: E402


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return folder_of("Llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def base_gguf(llama, tmp_path_factory):
    return gguf_of(bases.load(llama), tmp_path_factory.mktemp("gguf") / "base.gguf")


@torch.no_grad()
def ours(model):
    return model(torch.tensor([IDS])).logits[0, -1].log_softmax(-1)


def off(model, *files):
    """How far llama.cpp's log probabilities are from a model's, at most."""
    with Server(*files, context=256) as server:
        return (server.logprobs(IDS) - ours(model)).abs().max().item()


def test_llama_cpp_says_of_a_base_what_transformers_says(llama, base_gguf):
    assert off(bases.load(llama).model, base_gguf) < 1e-4


@pytest.mark.parametrize("method, options", [("lora", {}), ("rslora", {}), ("lora-fa", dict(scaling="alpha"))])
def test_an_adapter_says_in_llama_cpp_what_it_says_here_and_in_peft(llama, base_gguf, tmp_path, method, options):
    peft, base = pytest.importorskip("peft"), adapted(llama, method, **options)
    write_adapter(base, tmp_path / "a.gguf")
    save_adapter(base.model, tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(bases.load(llama).model, tmp_path / "peft")
    for model in (base.model, theirs):
        assert off(model, base_gguf, tmp_path / "a.gguf") < 1e-4
    assert (ours(bases.load(llama).model) - ours(base.model)).abs().max() > 0.1


def test_without_the_order_of_rows_an_adapter_says_something_else(llama, base_gguf, tmp_path, monkeypatch):
    base = adapted(llama, targets=["q_proj", "k_proj"])
    write_adapter(base, tmp_path / "right.gguf")
    monkeypatch.setattr("llm.export.gguf._rows", lambda base, module, t: t)
    write_adapter(base, tmp_path / "wrong.gguf")
    assert (
        off(base.model, base_gguf, tmp_path / "right.gguf")
        < 1e-4
        < 0.05
        < off(base.model, base_gguf, tmp_path / "wrong.gguf")
    )


def test_layers_that_differ_in_rank_and_scale_say_the_same(llama, base_gguf, tmp_path):
    base = adapted(llama, targets=["q_proj", "up_proj"])
    for layer in layers_of(base.model).values():
        if layer.out_features == 96:
            layer.A, layer.B = (torch.nn.Parameter(t) for t in (layer.A[:, :2].detach(), layer.B[:2].detach()))
            layer.r, layer.scale = 2, 0.5
    write_adapter(base, tmp_path / "a.gguf")
    assert off(base.model, base_gguf, tmp_path / "a.gguf") < 1e-4


def test_an_alpha_of_zero_leaves_the_base_as_it_is(llama, base_gguf, tmp_path):
    base = adapted(llama, alpha=0.0)
    write_adapter(base, tmp_path / "a.gguf")
    assert off(bases.load(llama).model, base_gguf, tmp_path / "a.gguf") < 1e-4


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-4), (torch.float16, 5e-2)])
@pytest.mark.parametrize("method, scheme", [("lora", None), ("dora", None), ("ia3", None), ("lora", "nf4")])
def test_a_merged_model_says_in_llama_cpp_what_base_and_adapter_say_here(
    llama, base_gguf, tmp_path, method, scheme, dtype, most
):
    base = adapted(llama, method, scheme)
    wanted = ours(base.model)
    write_merged(base, base_gguf, tmp_path / "m.gguf", dtype)
    with Server(tmp_path / "m.gguf", context=256) as server:
        assert (server.logprobs(IDS) - wanted).abs().max() < most
        assert (server.logprobs(IDS) - ours(bases.load(llama).model)).abs().max() > 2 * most


def test_a_head_of_its_own_is_merged_and_the_embedding_stays(llama, base_gguf, tmp_path):
    base = adapted(llama, targets=lambda path: path == "lm_head")
    with pytest.raises(AdapterError, match="lm_head: export it with --format merged"):
        write_adapter(base, tmp_path / "a.gguf")
    wanted = ours(base.model)
    write_merged(base, base_gguf, tmp_path / "m.gguf", torch.float32)
    with Server(tmp_path / "m.gguf", context=256) as server:
        assert (server.logprobs(IDS) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2", "Qwen3"])
def test_kinds_of_models_with_their_own_order_of_rows_say_the_same(kind, tmp_path):
    folder, word = folder_of(kind, tmp_path / "m"), "llama" if kind == "Mistral" else kind.lower()
    plain = gguf_of(bases.load(folder), tmp_path / "base.gguf", word, turned=kind == "Mistral")
    base = adapted(folder)
    write_adapter(base, tmp_path / "a.gguf")
    assert off(base.model, plain, tmp_path / "a.gguf") < 1e-4
    wanted = ours(base.model)
    write_merged(base, plain, tmp_path / "m.gguf", torch.float32)
    with Server(tmp_path / "m.gguf", context=256) as server:
        assert (server.logprobs(IDS) - wanted).abs().max() < 1e-4
