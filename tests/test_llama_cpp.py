"""What llama.cpp makes of the files that are written for it, by log probabilities: its text would hide most mistakes."""

import pytest
import torch

from llm import bases
from llm.adapters import save_adapter
from llm.errors import AdapterError
from llm.export.gguf import write_adapter, write_merged
from llm.relatives import METHODS, layers_of

transformers, gguf = pytest.importorskip("transformers"), pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
from llm.export.llama_cpp import Server  # noqa: E402

END, START = "<|im_end|>", "<|im_start|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IDS = [40, 71, 12, 199, 5, 88, 31, 7]
HEADS, KEYS = 4, 2


def folder_of(kind, path, **options):
    """A tiny model of random weights large enough to matter, and a tokenizer of bytes, as transformers has both."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = {c: i for i, c in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"])}
    made = Tokenizer(models.BPE(letters, [("t", "h")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, additional_special_tokens=[START])
    own.chat_template = CHATML
    torch.manual_seed(0)
    sizes = dict(vocab_size=264, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16)
    sizes |= dict(num_attention_heads=HEADS, num_key_value_heads=KEYS, max_position_embeddings=256)
    sizes |= dict(initializer_range=0.3, tie_word_embeddings=True) | options
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes))
    model.save_pretrained(path), own.save_pretrained(path)
    return path


def gguf_of(base, path, architecture="llama", turned=True, **changes):
    """The same model as a GGUF in float32, written name by name: rows of queries and keys pair by pair."""
    config, state = base.model.config, dict(base.model.named_parameters())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers), writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size), writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS), writer.add_head_count_kv(KEYS), writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(16), writer.add_value_length(16), writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"]), writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    own = {i: token for token, i in base.tokenizer.source.get_vocab().items()}
    tokens = [own.get(i, f"[PAD{i}]") for i in range(config.vocab_size)]
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("gpt-2"), writer.add_token_list(tokens)
    writer.add_token_types([3 if token in (END, START) else 1 if i in own else 5 for i, token in enumerate(tokens)])
    writer.add_token_merges(["t h"]), writer.add_eos_token_id(base.tokenizer.end), writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)
    names = dict(self_attn_q_proj="attn_q", self_attn_k_proj="attn_k", self_attn_v_proj="attn_v")
    names |= dict(self_attn_o_proj="attn_output", self_attn_q_norm="attn_q_norm", self_attn_k_norm="attn_k_norm")
    names |= dict(mlp_gate_proj="ffn_gate", mlp_up_proj="ffn_up", mlp_down_proj="ffn_down")
    names |= dict(input_layernorm="attn_norm", post_attention_layernorm="ffn_norm")
    for key, t in state.items():
        *place, name, part = key.removeprefix("model.").split(".")
        if place[:1] == ["layers"]:
            own = f"blk.{place[1]}." + names["_".join([*place[2:], name])]
        else:
            own = dict(embed_tokens="token_embd", norm="output_norm", lm_head="output")[name]
        t = t.detach()
        if own.endswith(("attn_q", "attn_k")) and turned:
            rows = [start + i + 8 * half for start in range(0, len(t), 16) for i in range(8) for half in (0, 1)]
            t = t[rows]
        t = changes.get(f"{own}.{part}", lambda t: t)(t)
        writer.add_tensor(f"{own}.{part}", t.numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return folder_of("Llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def base_gguf(llama, tmp_path_factory):
    return gguf_of(bases.load(llama), tmp_path_factory.mktemp("gguf") / "base.gguf")


def adapted(folder, method="lora", scheme=None, **options):
    """A base that wears an adapter which moves its answer."""
    base = bases.load(folder, scheme=scheme)
    torch.manual_seed(1)
    METHODS[method].prepare(base.model, **dict(r=4, alpha=8.0) | options)
    for layer in layers_of(base.model).values():
        for p in layer.parameters(recurse=False):
            p.data.add_(torch.randn_like(p) * 0.1)
    return base


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
