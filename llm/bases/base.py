"""A `Base` is all that fine-tuning needs of a model: itself, its tokenizer, its loss, its context."""

from dataclasses import dataclass

import torch
import torch.nn as nn

from llm.bases import transformers_models
from llm.tokenizer import Tokenizer
from llm.training import Loss


@dataclass(frozen=True)
class Base:
    """A model in eval mode and what belongs to it. context: the most tokens that it reads at once."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    context: int
    loss: Loss

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 60,
        temperature: float = 0.8,
        top_k: int | None = 40,
        seed: int | None = None,
    ) -> str:
        """The text that the model writes after `prompt`, up to the end token; temperature 0 takes the likeliest.

        An empty prompt starts from the beginning token, or else the end token. A prompt longer than the context is read
        from its end, behind the beginning token.
        """
        begin = [*self.tokenizer.begin]
        ids = self.tokenizer.encode(prompt)
        room = self.context - len(begin)
        if transformers_models.is_transformers(self.model):  # the window does not slide while what is new fits behind
            room -= max_new_tokens
        ids = begin + ids[-max(1, room) :] or [self.tokenizer.end]
        start = torch.tensor([ids], device=next(self.model.parameters()).device)
        options = dict(temperature=temperature, top_k=top_k, seed=seed, stop=self.tokenizer.end)
        out = generate(self.model, start, max_new_tokens, self.tokenizer, **options)
        new = out[0, len(ids) :].tolist()
        return self.tokenizer.decode(new[: new.index(self.tokenizer.end)] if self.tokenizer.end in new else new)


def generate(
    model: nn.Module, idx: torch.Tensor, max_new_tokens: int, tokenizer: Tokenizer | None = None, **options
) -> torch.Tensor:
    """`idx` (B, T) continued by any base's model; the options are those of `GPT.generate`.

    tokenizer: ids that it does not have are never drawn, though the model may have rows for them.
    """
    theirs = transformers_models.is_transformers(model)
    if tokenizer is not None:
        rows = model.get_input_embeddings().weight.size(0) if theirs else model.config.vocab_size
        options["never"] = tokenizer.unknown(rows)
    if theirs:
        return transformers_models.generate(model, idx, max_new_tokens, **options)
    return model.generate(idx, max_new_tokens, **options)
