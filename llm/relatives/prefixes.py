"""Virtual tokens before the text: keys and values that `GPT.hidden` takes for a past of every row.

A prefix is a module: `prefix(model, rows)` gives each block's keys and values, `prefix.length` says how many.
"""

import torch
import torch.nn as nn

from llm.model import GPT

COMMON = 5000  # virtual tokens start at tokens drawn from so many: a BPE numbers them about by how common they are


class Prompt(nn.Module):
    """Trained embeddings p (length, C) that the model reads before the text (Lester et al. 2021, arXiv 2104.08691).

    What comes first sees nothing of what follows: p's keys and values are the same before any text, and are all of it
    that the text can see. They have no positions, and the text keeps its own: the context is as long as without them.
    p starts at embeddings of common tokens (section 3.2), so the first output is the base's after these, not its own.
    """

    def __init__(self, model: GPT, length: int):
        super().__init__()
        table = model.transformer.wte.weight
        self.length = length
        ids = torch.randint(min(COMMON, len(table)), (length,)).to(table.device)
        self.p = nn.Parameter(table[ids].detach().float())

    def forward(self, model: GPT, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each block's keys and values (rows, heads, length, C / heads)."""
        x, past = self.p[None].to(model.transformer.wte.weight.dtype), []
        for block in model.transformer.h:
            x, present = block(x)
            past.append(tuple(t.expand(rows, -1, -1, -1) for t in present))
        return past


class Prefix(nn.Module):
    """Trained keys and values that every block's attention sees before the text's (Li and Liang 2021, arXiv 2101.00190).

    keys and values (layers, heads, length, C / heads), without the paper's MLP around them, which is for training alone.
    They start as those of common tokens (its section 7.4), so the first output is the base's after these, not its own;
    nor would zeros leave it alone, as a key of zeros takes its share of the attention. Positions as with `Prompt`.
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
