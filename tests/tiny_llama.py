"""A Llama so small that llama.cpp starts on it at once: as transformers has it, and as a GGUF written by hand."""

import gguf
import torch
import transformers

from llm import bases
from llm.relatives import METHODS, layers_of

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


def adapted(folder, method="lora", scheme=None, **options):
    """A base that wears an adapter which moves its answer."""
    base = bases.load(folder, scheme=scheme)
    torch.manual_seed(1)
    METHODS[method].prepare(base.model, **dict(r=4, alpha=8.0) | options)
    for layer in layers_of(base.model).values():
        for p in layer.parameters(recurse=False):
            p.data.add_(torch.randn_like(p) * 0.1)
    return base
