"""Virtual tokens before the text: keys and values that `GPT.hidden` uses as the past of every row.

A prefix is a module: `prefix(model, rows)` returns each block's keys and values, and `prefix.length` their number.
"""

import torch
import torch.nn as nn

from llm.model import GPT

COMMON = 5000  # virtual tokens start as random tokens below this id: a BPE numbers roughly by frequency


class Prompt(nn.Module):
    """Trained embeddings p (length, C) that the model reads before the text (Lester et al. 2021, arXiv 2104.08691).

    Attention is causal, so p's keys and values are the same before any text, and the text sees nothing else of p.
    Virtual tokens have no positions: the text keeps its own, and the whole context remains.
    p starts at embeddings of common tokens (section 3.2), so the first output is the base's after these, not its own.
    """

    def __init__(self, model: GPT, length: int):
        super().__init__()
        table = model.transformer.wte.weight
        self.length = length
        ids = torch.randint(min(COMMON, len(table)), (length,)).to(table.device)
        self.p = nn.Parameter(table[ids].detach().float())

    def forward(self, model: GPT, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return each block's keys and values (rows, heads, length, C / heads)."""
        x, past = self.p[None].to(model.transformer.wte.weight.dtype), []
        for block in model.transformer.h:
            x, present = block(x)
            past.append(tuple(t.expand(rows, -1, -1, -1) for t in present))
        return past


class Prefix(nn.Module):
    """Trained keys and values that precede the text's in every block's attention (Li and Liang 2021, arXiv 2101.00190).

    keys and values (layers, heads, length, C / heads), without the paper's MLP, which serves training only. They start
    as those of common tokens (section 7.4), so the first output is the base's after these, not its own. Zeros would
    change it too, because a key of zeros gets its share of the attention. Positions as in `Prompt`.
    """

    def __init__(self, model: GPT, length: int):
        super().__init__()
        with torch.no_grad():
            past = Prompt(model, length)(model, 1)
        self.length = length
        self.keys, self.values = (nn.Parameter(torch.cat(t).float()) for t in zip(*past))

    def forward(self, model: GPT, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        dtype = model.transformer.wte.weight.dtype
        pairs = zip(self.keys.to(dtype), self.values.to(dtype))
        return [tuple(t.expand(rows, -1, -1, -1) for t in pair) for pair in pairs]
