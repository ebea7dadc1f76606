"""Writes GGUF, llama.cpp's file format: an adapter, or a whole model with the adapter merged into it.

For rotary positions in a Llama, llama.cpp pairs neighboring rows of queries and keys; transformers pairs the first half
with the second. A GGUF therefore stores these rows in another order, for the weights and for B, whose rows are outputs.
"""

from pathlib import Path

import torch

from llm.bases import Base
from llm.bases.transformers_models import INSTALL, theirs
from llm.errors import AdapterError, BaseError
from llm.lora import LoraLinear
from llm.quantize import dequantize, four_bit_layers
from llm.relatives import DoraLinear, layers_of, merge, method_of

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # llama.cpp's names
MERGED = "export it with --format merged"
OWN = ("general.architecture", "general.name", "general.file_type", "general.quantization_version")  # not copied


def write_adapter(base: Base, path: Path) -> None:
    """Write the LoRA layers of `base` as a llama.cpp adapter, in float32.

    llama.cpp multiplies B A by alpha / r, or by 1 if alpha is 0. If layers differ in alpha, B is multiplied by their
    scale. Raises AdapterError for what llama.cpp cannot add to a model, and BaseError for an unknown kind of model.
    """
    names, layers = _names(base), layers_of(base.model)
    if not all(isinstance(x, LoraLinear) and not isinstance(x, DoraLinear) for x in layers.values()):
        raise AdapterError(f"llama.cpp reads adapters of LoRA alone, and this is {method_of(base.model)}: {MERGED}")
    if four_bit_layers(base.model):
        raise AdapterError(f"this adapter was trained over four bits that no GGUF of its base has: {MERGED}")
    if strange := [x for x in layers if not (names.get_name(x) or "").startswith("blk.")]:
        raise AdapterError(f"llama.cpp has no place for what this adapter learned of {strange[0]}: {MERGED}")
    alpha, *more = {layer.scale * layer.r for layer in layers.values()}
    alpha = 0 if more else alpha

    import gguf

    writer = gguf.GGUFWriter(path, architecture(base))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for module, layer in layers.items():
        B = _rows(base, module, layer.B.detach().T * (1 if alpha else layer.scale))
        for part, t in (("a", layer.A.detach().T), ("b", B)):  # (r, in), (out, r)
            writer.add_tensor(f"{names.get_name(module)}.weight.lora_{part}", _array(t))
    _finish(writer)


def write_merged(
    base: Base,
    source: Path,
    path: Path,
    dtype: torch.dtype = torch.float16,
    name: str = "merged",
    template: str | None = None,
    eot: int | None = None,
) -> None:
    """Merge the adapter of `base` into it and write the whole model: matrices in `dtype`, vectors in float32.

    source: a GGUF of the base in any precision; it gives the tokenizer and all other metadata, but no weights.
    template, eot: a chat template and the token that ends a turn, if they differ from those of `source`.
    Raises BaseError when `source` is not a GGUF of this model, and when a weight is too large for `dtype`.
    """
    names, model = _names(base), base.model

    import gguf

    cure = "give that of the base with --gguf"
    with theirs(f"{source} cannot be read as a GGUF", cure):
        reader = gguf.GGUFReader(source)
        given = {t.name: t for t in reader.tensors}
        found = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()

    def check(holds, what):
        if not holds:
            raise BaseError(f"{source} is not {base.name} as a GGUF ({what}): {cure}")

    check(found == architecture(base), f"its architecture is {found[:40]!r}")
    linears = {module: layer.base for module, layer in layers_of(model).items()}
    before = {f"{module}.{kind}": getattr(x, kind) for module, x in linears.items() for kind in ("weight", "bias")}
    dequantize(merge(model))
    kind = gguf.LlamaFileType.MOSTLY_F16 if dtype == torch.float16 else gguf.LlamaFileType.ALL_F32
    writer, written = gguf.GGUFWriter(path, found), set(OWN)
    writer.add_name(name), writer.add_file_type(kind)
    if template is not None:
        writer.add_chat_template(template), writer.add_eot_token_id(eot)
        written |= {gguf.Keys.Tokenizer.CHAT_TEMPLATE, gguf.Keys.Tokenizer.EOT_ID}
    for field in reader.fields.values():
        if field.name not in written and not field.name.startswith("GGUF."):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for key, t in model.named_parameters():  # a tied head appears once, as the embedding
        module, kind = key.rsplit(".", 1)
        own = f"{names.get_name(module)}.{kind}"
        if old := given.pop(own, None):
            was = _rows(base, module, before.get(key, t).detach().float().cpu())
            now = torch.tensor(
                gguf.dequantize(old.data, old.tensor_type)
            ).float()  # a copy, because the file is mapped read-only
            # two-bit weights differ by a third of the norm, another model's weights by all of it
            check(was.shape == now.shape and (was - now).norm() <= 0.4 * was.norm(), f"its {own} is another")
        else:  # a tied head has no tensor of its own until an adapter changes it
            check(key in before, f"it has no {own}")
        cast = _rows(base, module, t.detach().to(dtype if t.dim() > 1 else torch.float32))
        if not cast.isfinite().all():
            raise BaseError(f"{key} does not fit into {dtype}: export it with --dtype float32")
        writer.add_tensor(own, _array(cast))
    for own, old in given.items():
        if own.startswith("rope_"):  # rotary frequencies for long contexts
            writer.add_tensor(own, old.data, raw_dtype=old.tensor_type)
        else:  # a copy of a tied embedding, which llama.cpp uses in its place
            check(own == "output.weight", f"it has {own[:80]!r} as well")
    _finish(writer)


def architecture(base: Base) -> str:
    """The name that llama.cpp has for a model of this kind. Raises BaseError where it is none of `ARCHITECTURES`."""
    kind = getattr(getattr(base.model, "config", None), "model_type", "GPT of this course")
    if kind not in ARCHITECTURES:
        raise BaseError(
            f"the base {base.name} is a {kind}, and only {', '.join(ARCHITECTURES)} are written as GGUF here: use "
            "--format hub, or `python -m llm merge` and the convert_hf_to_gguf.py of llama.cpp, which knows more kinds"
        )
    return ARCHITECTURES[kind]


def _names(base):
    """The map from names of modules of `base` to llama.cpp's names."""
    kind = architecture(base)
    try:
        import gguf
    except ImportError:
        raise BaseError(f"this needs the package gguf: {INSTALL}") from None
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(known[kind], base.model.config.num_hidden_layers)


def _rows(base, module, t):
    """Put the rows of a weight, a bias or B (out, ...) of `module` into llama.cpp's order."""
    config, last = base.model.config, module.rpartition(".")[2]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(last)
    if architecture(base) != "llama" or not heads:
        return t
    return t.unflatten(0, (heads, 2, -1)).swapaxes(1, 2).flatten(0, 2)


def _array(t):
    return t.contiguous().cpu().numpy()


def _finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
