"""A `Base` bundles all that fine-tuning needs: a model, its tokenizer, its loss and its context."""

from dataclasses import dataclass

import torch
import torch.nn as nn

from llm.bases import transformers_models
from llm.text import chat
from llm.tokenizer import Tokenizer
from llm.training import Loss


@dataclass(frozen=True)
class Base:
    """A model in eval mode, with its tokenizer and loss. context: the most tokens that it reads at once."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    context: int
    loss: Loss
    origin: str | None = None  # its name on the Hugging Face hub, or its folder's name

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 60,
        temperature: float = 0.8,
        top_k: int | None = 40,
        seed: int | None = None,
    ) -> str:
        """Return the text that the model writes after `prompt`, up to the end token; temperature 0 is greedy.

        An empty prompt starts from the beginning token, or else the end token. Of a text longer than the context, the
        model reads the beginning token and the end. Raises SettingError as `generation.check_sampling` does.
        """
        prompt_ids = self.tokenizer.encode(prompt)
        ids = [*self.tokenizer.begin, *prompt_ids] or [self.tokenizer.end]
        options = dict(temperature=temperature, top_k=top_k, seed=seed, stop=self.tokenizer.end)
        return new_text(self.tokenizer, prompt_ids, self._new(ids, max_new_tokens, **options))

    def chat(
        self,
        messages: list[dict] | str,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = 40,
        seed: int | None = None,
        tools: list | None = None,
    ) -> str:
        """Return the model's answer to a conversation, or to one user message, written with the tokenizer's template.

        It ends at the template's end of turn or at the end token. Raises as `generate` and `chat.opening` do.
        """
        messages = [dict(role="user", content=messages)] if isinstance(messages, str) else messages
        ids, end = chat.opening(messages, self.tokenizer, tools), chat.end_of_turn(self.tokenizer)
        options = dict(temperature=temperature, top_k=top_k, seed=seed, stop=(end, self.tokenizer.end))
        new = self._new(ids, max_new_tokens, **options)
        answer = new_text(self.tokenizer, ids, new[: new.index(end)] if end in new else new)
        # if the vocabulary lacks the template's end of turn, its spelled-out text ends the answer
        return answer.partition(chat.end_text(self.tokenizer) or "\0")[0].strip()

    def _new(self, ids, max_new_tokens, **options):
        start = torch.tensor([ids], device=next(self.model.parameters()).device)
        return generate(self.model, start, max_new_tokens, self.tokenizer, **options)[0, len(ids) :].tolist()


def new_text(tokenizer: Tokenizer, ids: list[int], new: list[int]) -> str:
    """Return the text of the tokens `new`, up to the end token, as it reads after that of `ids`.

    Many tokenizers drop the space before the first word that they decode, so `ids` are decoded too.
    """
    new = new[: new.index(tokenizer.end)] if tokenizer.end in new else new
    before, whole = tokenizer.decode(ids), tokenizer.decode(ids + new)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def generate(
    model: nn.Module, idx: torch.Tensor, max_new_tokens: int, tokenizer: Tokenizer | None = None, **options
) -> torch.Tensor:
    """Continue `idx` (B, T) with any base's model; the options are those of `generation.generate`.

    tokenizer: ids that it lacks are never drawn, even if the model has rows for them, and the rows of `idx` keep its
    beginning tokens when the window slides.
    """
    if tokenizer is not None:
        rows = vocabulary_rows(model)
        options |= dict(never=[i for i in tokenizer.unknown(rows) if i < rows], keep=len(tokenizer.begin))
    if transformers_models.is_transformers(model):
        return transformers_models.generate(model, idx, max_new_tokens, **options)
    return model.generate(idx, max_new_tokens, **options)


def vocabulary_rows(model: nn.Module) -> int:
    """Return how many ids a base's model has an embedding for."""
    theirs = transformers_models.is_transformers(model)
    return model.get_input_embeddings().weight.size(0) if theirs else model.config.vocab_size
