"""What training did inside a model: how far each output's weights grew and turned, and where attention goes.

Knows nothing of tasks or pictures: weights and models go in, numbers come out.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass(frozen=True)
class Moved:
    """Of each output of a layer (out,): how far its weights' length has changed; and 1 - the cosine between its direction
    and what it was (Liu et al. 2024, arXiv 2402.09353, section 3.2).
    """

    grown: torch.Tensor
    turned: torch.Tensor

    @property
    def correlation(self) -> float:
        return torch.corrcoef(torch.stack((self.grown, self.turned)))[0, 1].item()


def moved(before: torch.Tensor, after: torch.Tensor) -> Moved:
    """Two weights of one layer, (out, in) as torch keeps them."""
    return Moved((after.norm(dim=1) - before.norm(dim=1)).abs(), 1 - F.cosine_similarity(before, after, dim=1))


def weights_of(model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """The effective weight of each of these layers, as names in the base's state dict: whatever a method has put there."""
    return {name: model.get_submodule(name.removesuffix(".weight")).weight.detach().clone() for name in names}


@torch.no_grad()
def attention_before_the_text(model: nn.Module, idx: torch.Tensor) -> torch.Tensor:
    """The share of each head's attention that a model's virtual tokens take, over all of the text: (layers, heads).

    model: a `GPT`; idx (B, T). Raises ValueError for a model without virtual tokens.
    """
    if model.prefix is None:
        raise ValueError("this model has no virtual tokens")
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        block.attn.c_attn.register_forward_hook(lambda _m, _in, out, i=i: seen.update({i: out}))
        for i, block in enumerate(model.transformer.h)
    ]
    try:
        _, presents = model.hidden(idx)  # a prompt goes through the blocks first: the text's pass comes last
    finally:
        for hook in hooks:
            hook.remove()
    B, T, C = seen[0].size(0), idx.size(1), model.config.n_embd
    found = []
    for i, (keys, _) in enumerate(presents):  # (B, heads, virtual + T, C / heads)
        heads, virtual = keys.size(1), keys.size(2) - T
        q = seen[i][..., :C].view(B, T, heads, C // heads).transpose(1, 2)
        scores = q @ keys.transpose(2, 3) / (C // heads) ** 0.5  # (B, heads, T, virtual + T)
        mask = torch.ones(T, virtual + T, dtype=torch.bool, device=idx.device).tril(virtual)
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        found.append(weights[..., :virtual].sum(-1).mean((0, 2)))
    return torch.stack(found)
