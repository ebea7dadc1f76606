"""What `bench.py` measures, an arm each: a function that sets it up and gives an action to be timed.

Peft and transformers are imported inside the arms that need them, so that no other arm pays for them in memory.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat

import torch
import torch.nn.functional as F

from llm.adapters import load_adapter, save_adapter
from llm.bases import transformers_models
from llm.lora import apply_lora, lora_layers, merge_lora
from llm.loss import IGNORE, TILE, multiplies_bfloat16
from llm.model import GPT, GPTConfig
from llm.training import make_optimizer, own_loss, train

ROWS, BLOCK = 32, 64
REAL_ROWS = 4  # of a model of SmolLM2's size
KEPT = 0.3  # of a record's tokens the completion, and so the loss, has about a third
NEW = 56  # tokens to write behind a prompt of 8: together the context
CPU = torch.device("cpu")
COURSE = GPTConfig()


def ours(r, config=COURSE):
    """Our GPT, with LoRA at rank r, or fully trained at r = 0."""
    model = GPT(config)
    return apply_lora(model, r=r) if r else model


def theirs(r, config=COURSE):
    """transformers' GPT-2 at the same size, under PEFT's LoRA at rank r or fully trained."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd)
    config = GPT2Config(n_positions=config.block_size, tie_word_embeddings=config.tied_lm_head, **sizes)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return _peft(GPT2LMHeadModel(config), r, ["c_attn", "c_proj", "c_fc"]) if r else GPT2LMHeadModel(config)


def smollm2():
    """A model of SmolLM2-135M's shape, its weights random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, vocab_size=49152)
    heads = dict(num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def smollm2_theirs():
    return _peft(smollm2(), 8, "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())


def _peft(model, r, names):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=r, lora_alpha=16, target_modules=names))


def whole_logits(model, x, y, precision="float32"):
    """The loss as transformers works it out: from all the logits at once."""
    return F.cross_entropy(model(input_ids=x).logits.flatten(0, 1), y.flatten(), ignore_index=IGNORE)


def under_autocast(model, x, y, precision="float32"):
    with torch.autocast(x.device.type, torch.bfloat16):
        return whole_logits(model, x, y)


def timed(action) -> float:
    """Its seconds."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


# training: an arm yields after each step, and what it yields is the step's seconds and what else it measured


def library_loss(model, x, y, precision="float32"):
    """Our model's loss by torch's own chunked function, in float32."""
    options = torch.nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=256)
    hidden = model.hidden(x)[0].flatten(0, 1)
    return F.linear_cross_entropy(hidden, model.lm_head.weight, y.flatten(), ignore_index=IGNORE, options=options)


def steps(make, loss=own_loss, rows=ROWS, block=BLOCK, kept=1.0, fused=True, device=CPU, **options) -> Iterator[dict]:
    """LoRA or full steps on random tokens, of which the last `kept` of each row count."""
    with device:
        model = make()
    x = torch.randint(49152, (rows, block + 1))
    y = x[:, 1:].clone()
    y[:, : round(block * (1 - kept))] = IGNORE
    optimizer = make_optimizer(model, 1e-4)
    for group in optimizer.param_groups:
        group["fused"] = group["fused"] and fused
    for step in train(
        model, repeat((x[:, :-1], y)), steps=1_000_000, lr=1e-4, loss=loss, optimizer=optimizer, **options
    ):
        yield dict(seconds=step.seconds)


def products(precision: str) -> Callable[[], None]:
    """The matrix products of a LoRA step and nothing else, in the step's own precision and tiles."""
    model, n, pairs = ours(8), ROWS * BLOCK, []
    for layer in lora_layers(model).values():
        W, A, B = layer.base.weight, layer.A, layer.B
        x, g, low = torch.randn(n, layer.in_features), torch.randn(n, layer.out_features), torch.randn(n, layer.r)
        pairs += [(x, W.T), (g, W), (x, A), (low, B), (g, B.T), (low, A.T), (x.T, low), (low.T, g)]
    config, d = model.config, model.config.n_embd // model.config.n_head
    q, s = (torch.randn(ROWS * config.n_head, BLOCK, width) for width in (d, BLOCK))
    pairs += [(q, q.mT), (s, q), (q, q.mT), (s, q), (s, q), (s.mT, q)] * config.n_layer
    bf16 = precision == "auto" and multiplies_bfloat16(CPU)
    W = model.lm_head.weight.to(torch.bfloat16 if bf16 else torch.float32)
    rows, words = TILE
    h, g = torch.randn(rows, d * config.n_head, dtype=W.dtype), torch.randn(rows, words, dtype=W.dtype)
    pairs += [pair for w in W.split(words) for pair in ((h, w.T), (g[:, : len(w)], w))] * (n // rows)
    return partial(multiply, pairs)


@torch.no_grad()
def multiply(pairs):
    for a, b in pairs:
        a @ b


# text: the action writes NEW tokens behind 8, sampled among the 40 likeliest


def writing(batch: int, merged: bool, device=CPU) -> Callable[[], None]:
    model = ours(8).to(device)
    model = (merge_lora(model) if merged else model).eval()
    return partial(model.generate, torch.zeros(batch, 8, dtype=torch.long, device=device), NEW, top_k=40, seed=0)


def writing_products(batch: int) -> Callable[[], None]:
    """The matrix products of that and nothing else: of NEW tokens, each behind half a context."""
    model, pairs = ours(8), []
    for layer in lora_layers(model).values():
        x, low = torch.randn(batch, layer.in_features), torch.randn(batch, layer.r)
        pairs += [(x, layer.base.weight.T), (x, layer.A), (low, layer.B)]
    config, d = model.config, model.config.n_embd // model.config.n_head
    q, s, past = (torch.randn(batch, config.n_head, *size) for size in ((1, d), (1, BLOCK // 2), (BLOCK // 2, d)))
    pairs += [(q, past.mT), (s, past)] * config.n_layer
    pairs.append((torch.randn(batch, config.n_embd), model.lm_head.weight.T))
    return partial(multiply, pairs * NEW)


def writing_theirs(batch: int, device=CPU) -> Callable[[], None]:
    model, prompt = theirs(8).eval().to(device), torch.zeros(batch, 8, dtype=torch.long, device=device)
    options = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=True, top_k=40, pad_token_id=0)
    return lambda: model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)


# adapters


def _adapter():
    folder = tempfile.mkdtemp()
    torch.manual_seed(0)
    trained = apply_lora(smollm2(), r=8)
    for layer in lora_layers(trained).values():
        torch.nn.init.normal_(layer.B)
    save_adapter(trained, folder)
    torch.manual_seed(0)
    return folder


def swapping():
    folder = _adapter()
    return partial(load_adapter, apply_lora(smollm2(), r=8), folder)


def swapping_theirs():
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter

    folder = _adapter()
    model = PeftModel.from_pretrained(smollm2(), folder)
    return partial(hotswap_adapter, model, folder, adapter_name="default", torch_device="cpu")


STEPS = {
    "LoRA r=8": dict(make=partial(ours, 8)),
    "LoRA r=8, float32": dict(make=partial(ours, 8), precision="float32"),
    "LoRA r=1": dict(make=partial(ours, 1)),
    "LoRA r=64": dict(make=partial(ours, 64)),
    "LoRA r=8, loss on a third": dict(make=partial(ours, 8), kept=KEPT),
    "LoRA r=8, loss on a tenth": dict(make=partial(ours, 8), kept=0.1),
    "full": dict(make=partial(ours, 0)),
    "pretraining": dict(make=partial(ours, 0), precision="bfloat16"),
    "pretraining, torch's own loss": dict(make=partial(ours, 0), loss=library_loss, fused=False),
    "PEFT r=8": dict(make=partial(theirs, 8), loss=whole_logits, precision="float32"),
    "PEFT r=8, autocast": dict(make=partial(theirs, 8), loss=under_autocast, precision="float32"),
    "SmolLM2, LoRA": dict(make=lambda: apply_lora(smollm2(), r=8), loss=transformers_models.loss, rows=REAL_ROWS),
    "SmolLM2, LoRA, bfloat16": dict(
        make=lambda: apply_lora(smollm2(), r=8), loss=transformers_models.loss, rows=REAL_ROWS, precision="bfloat16"
    ),
    "SmolLM2, PEFT": dict(make=smollm2_theirs, loss=whole_logits, rows=REAL_ROWS, precision="float32"),
    "SmolLM2, PEFT, autocast": dict(make=smollm2_theirs, loss=under_autocast, rows=REAL_ROWS, precision="float32"),
}
ACTIONS = {
    "products of LoRA r=8": partial(products, "auto"),
    "products of LoRA r=8, float32": partial(products, "float32"),
    "write, batch 1": partial(writing, 1, False),
    "write, batch 1, merged": partial(writing, 1, True),
    "write, batch 16": partial(writing, 16, False),
    "write, batch 16, merged": partial(writing, 16, True),
    "products of write, batch 1": partial(writing_products, 1),
    "products of write, batch 16": partial(writing_products, 16),
    "write, batch 1, PEFT": partial(writing_theirs, 1),
    "write, batch 16, PEFT": partial(writing_theirs, 16),
    "swap": swapping,
    "swap, PEFT": swapping_theirs,
}
