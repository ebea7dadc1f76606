"""A `Base` is all that fine-tuning needs of a model: itself, its tokenizer, its loss, its context."""

from dataclasses import dataclass

import torch
import torch.nn as nn

from llm.bases import transformers_models
from llm.text import chat
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
    origin: str | None = None  # its name on the Hugging Face hub, or its folder's own name

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 60,
        temperature: float = 0.8,
        top_k: int | None = 40,
        seed: int | None = None,
    ) -> str:
        """The text that the model writes after `prompt`, up to the end token; temperature 0 takes the likeliest.

        An empty prompt starts from the beginning token, or else the end token. Text that does not fit the context is
        read from its end, behind the beginning token. Raises SettingError as `generation.check_sampling` does.
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
        """The model's answer to a conversation, or to one message of a user, written with the tokenizer's template.

        It ends at the template's end of turn, or at the end token. The errors are those of `generate` and `chat.opening`.
        """
        messages = [dict(role="user", content=messages)] if isinstance(messages, str) else messages
        ids, end = chat.opening(messages, self.tokenizer, tools), chat.end_of_turn(self.tokenizer)
        options = dict(temperature=temperature, top_k=top_k, seed=seed, stop=(end, self.tokenizer.end))
        new = self._new(ids, max_new_tokens, **options)
        answer = new_text(self.tokenizer, ids, new[: new.index(end)] if end in new else new)
        # on a vocabulary that lacks the template's end, its letters are what ends an answer
        return answer.partition(chat.end_text(self.tokenizer) or "\0")[0].strip()

    def _new(self, ids, max_new_tokens, **options):
        start = torch.tensor([ids], device=next(self.model.parameters()).device)
        return generate(self.model, start, max_new_tokens, self.tokenizer, **options)[0, len(ids) :].tolist()


def new_text(tokenizer: Tokenizer, ids: list[int], new: list[int]) -> str:
    """The text of the tokens `new`, up to the end token, as it stands behind that of `ids`.

    Many tokenizers leave out the blank before the first word that they decode.
    """
    new = new[: new.index(tokenizer.end)] if tokenizer.end in new else new
    before, whole = tokenizer.decode(ids), tokenizer.decode(ids + new)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def generate(
    model: nn.Module, idx: torch.Tensor, max_new_tokens: int, tokenizer: Tokenizer | None = None, **options
) -> torch.Tensor:
    """`idx` (B, T) continued by any base's model; the options are those of `generation.generate`.

    tokenizer: ids that it does not have are never drawn, though the model may have rows for them; a row that begins with
    its beginning token keeps that when the window slides.
    """
    if tokenizer is not None:
        rows = vocabulary_rows(model)
        options |= dict(never=[i for i in tokenizer.unknown(rows) if i < rows], keep=len(tokenizer.begin))
    if transformers_models.is_transformers(model):
        return transformers_models.generate(model, idx, max_new_tokens, **options)
    return model.generate(idx, max_new_tokens, **options)


def vocabulary_rows(model: nn.Module) -> int:
    """How many ids a base's model has an embedding for."""
    theirs = transformers_models.is_transformers(model)
    return model.get_input_embeddings().weight.size(0) if theirs else model.config.vocab_size
