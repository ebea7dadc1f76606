"""The GPT of chapter 12, with the switches that turn it into GPT-2 (Radford et al. 2019).

Module names are GPT-2's own, so its weights load by name. Knows nothing about LoRA or data.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from llm import gpt2_weights
from llm.errors import SettingError
from llm.generation import generate
from llm.loss import head_loss


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int = 50257  # GPT-2's tokenizer
    block_size: int = 64  # context length in tokens
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # width, d in the course
    ffn_mult: int = 4  # the MLP's inner width / n_embd
    dropout: float = 0.0
    bias: bool = False  # in attention's linear layers; True for GPT-2
    tied_lm_head: bool = False  # one matrix for embedding and head; True for GPT-2

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise SettingError(f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}")


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k, v in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, past=None):
        B, T, C = x.shape
        q, k, v = (
            t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, heads, T, C / heads)
            for t in self.c_attn(x).split(C, dim=2)
        )
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)  # (B, heads, past + T, C / heads)
        # one new token attends to all that came before; several need a causal mask that is offset by the past
        S = k.size(2)
        mask = None if past is None or T == 1 else torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        y = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=past is None, dropout_p=self.dropout if self.training else 0.0
        )
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training), (k, v)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, config.ffn_mult * config.n_embd)
        self.c_proj = nn.Linear(config.ffn_mult * config.n_embd, config.n_embd)

    def forward(self, x):
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.n_embd), CausalSelfAttention(config)
        self.ln_2, self.mlp = nn.LayerNorm(config.n_embd), MLP(config)

    def forward(self, x, past=None):
        y, present = self.attn(self.ln_1(x), past)
        x = x + y
        return x + self.mlp(self.ln_2(x)), present


class GPT(nn.Module):
    """A decoder-only transformer: pre-norm blocks, learned positions.

    `model(idx)` -> logits (B, T, vocab); `model(idx, targets)` -> (None, loss), without ever holding all the logits.
    idx and targets are (B, T) token ids, T <= block_size; a target of -100 does not count.
    precision: of the head's products when it computes a loss, as in `loss.head_loss`.
    Raises SettingError when T exceeds the context.
    """

    def __init__(self, config: GPTConfig = GPTConfig()):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.prefix = None  # virtual tokens before every row, without positions (llm/relatives/prefixes.py)
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(config.vocab_size, config.n_embd),
                wpe=nn.Embedding(config.block_size, config.n_embd),
                h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                ln_f=nn.LayerNorm(config.n_embd),
            )
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._init)
        for name, p in self.named_parameters():  # as in GPT-2: deeper models start these projections smaller
            if name.endswith("c_proj.weight"):
                nn.init.normal_(p, std=0.02 / (2 * config.n_layer) ** 0.5)
        if config.tied_lm_head:
            self.lm_head.weight = self.transformer.wte.weight

    @classmethod
    def from_pretrained(cls, name_or_folder) -> "GPT":
        """Load GPT-2's weights in float32, in eval mode: "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl" or a folder.

        The folder may also be one that `bases.save` wrote. Raises BaseError when the weights cannot be fetched or do
        not match their config.
        """
        return gpt2_weights.read(name_or_folder, lambda fields: cls(GPTConfig(**fields)))

    @staticmethod
    def _init(module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def forward(self, idx, targets=None, precision="float32"):
        hidden, _ = self.hidden(idx)
        if targets is None:
            return self.lm_head(hidden)  # (B, T, vocab)
        return None, head_loss(hidden, self.lm_head, targets, precision)

    def gradient_checkpointing_enable(self):
        """In training, keep only each block's input; the backward pass recomputes the rest (Chen et al. 2016).

        The name is that of the same method in transformers' models.
        """
        self.gradient_checkpointing = True

    def hidden(self, idx, past=None):
        """Return the final normalized states (B, T, C), and each block's keys and values for the next call's `past`."""
        T, virtual = idx.size(1), 0
        if self.prefix is not None:
            past, virtual = past or self.prefix(self, idx.size(0)), self.prefix.length
        start = past[0][0].size(2) - virtual if past else 0
        if start + T > self.config.block_size:
            raise SettingError(f"{start + T} tokens do not fit a context of {self.config.block_size}")
        x = self.transformer.wte(idx) + self.transformer.wpe.weight[start : start + T]  # (B, T, C)
        presents = []
        for i, block in enumerate(self.transformer.h):
            if self.gradient_checkpointing and self.training:
                x, present = checkpoint(block, x, past[i] if past else None, use_reentrant=False)
            else:
                x, present = block(x, past[i] if past else None)
            presents.append(present)
        return self.transformer.ln_f(x), presents

    def generate(self, idx, max_new_tokens, *args, **options):
        """Continue `idx` (B, T) by up to `max_new_tokens` ids; the options are those of `generation.generate`."""
        return generate(self, idx, max_new_tokens, *args, **options)
