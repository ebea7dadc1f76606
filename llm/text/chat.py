"""A conversation as tokens: a chat template writes the text, and the answers are graded (count in the loss).

transformers renders a tokenizer's own template in a sandbox; the built-in plain one needs no package. Answers are where
the template marks them (`{% generation %}`), or else are found by rendering the conversation up to each of them.
transformers' own mask is not used: most templates mark nothing and get zeros, and a mark at token 0 or on stripped
white space grades the rest of the text (transformers, issue 47325). Knows nothing about kinds of models.
"""

import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from os.path import commonprefix

import torch
import torch.nn as nn

from llm.checkpoint_folder import first_line
from llm.errors import SettingError, TextError
from llm.paths import user_path
from llm.text.examples import Example
from llm.tokenizer import Tokenizer

TRAIN_ON = "answers", "last", "all"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') "
    "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# the plain template for other programs; `_plain` writes the same text
PLAIN = (
    "{% for message in messages %}{{ message['role'] | capitalize + ':' }}{{ ' ' + message['content'] if message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' }}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
JINJA = re.compile(r"\{[{%]")
MARKERS = re.compile(r"<\|\w+\|>|<\w+_of_turn>")


def conversation(
    messages: list[dict],
    tokenizer: Tokenizer,
    train_on: str = "answers",
    tools: list | None = None,
    answers_from: int = 0,
) -> list[Example]:
    """Tokenize a conversation into rows: usually one, none if there is no answer to grade.

    train_on: "answers" grades every assistant turn from message `answers_from` on, including its end token but not its
    role header; "last" grades the last of them; "all" grades every token. Some templates rewrite earlier turns when a
    message is added (Qwen3 drops their thinking), or begin an answer differently from the generation prompt. Then each
    answer becomes its own row, after exactly the text that the model sees when it is asked for that answer.
    Raises TextError when the template rejects the conversation, and SettingError for an unknown `train_on`.
    """
    if train_on not in TRAIN_ON:
        raise SettingError(f"train_on={train_on!r} is unknown: choose one of {', '.join(TRAIN_ON)}")
    whole, marks = render(messages, tokenizer, tools)
    if train_on == "all":
        ids = _tokens(tokenizer, whole)[0]
        return [(ids[:1], ids[1:])]
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= answers_from]
    turns = turns[-1:] if train_on == "last" else turns
    answers = [_answer(messages, i, tokenizer, tools) for i in turns]
    if all(whole.startswith(text[:end]) for text, _, end in answers):
        close = end_text(tokenizer)
        spans = [  # a mark may begin in the role header, stop before the end of the turn, or run past it
            (max(a, start), end if whole[b:end].strip() == close else min(b, end))
            for _, start, end in answers
            for a, b in marks or [(start, end)]
            if a < end and start < b
        ]
        rows = [_row(tokenizer, whole, spans)]
    else:
        rows = [_row(tokenizer, text[:end], [(start, end)]) for text, start, end in answers]
    return [row for row in rows if len(row) > 1]


def opening(messages: list[dict], tokenizer: Tokenizer, tools: list | None = None) -> list[int]:
    """The tokens that ask a model for its next answer: the conversation and the header of an assistant turn."""
    return _tokens(tokenizer, _asked(messages, tokenizer, tools))[0]


def end_of_turn(tokenizer: Tokenizer) -> int:
    """The token that ends an answer: the template's own if it has one, else `tokenizer.end`."""
    text = end_text(tokenizer)
    return _tokens(tokenizer, text)[0][-1] if text in _special(tokenizer) else tokenizer.end


def end_text(tokenizer: Tokenizer) -> str:
    """The text that the template writes to end an answer, such as "<|im_end|>"; "" if it writes none."""
    tail = _tail(tokenizer).lstrip()
    return max((s for s in _special(tokenizer) if tail.startswith(s)), key=len, default=tail.rstrip())


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """A copy of the tokenizer with another chat template: "plain", "chatml", Jinja text, or the path of a Jinja file.

    Raises TextError when the file cannot be read or holds no template.
    """
    template = CHATML if template == "chatml" else template
    if template != "plain" and not JINJA.search(name := template):
        try:
            template = user_path(name).read_text(encoding="utf-8")
        except (OSError, ValueError):
            template = ""
        if not JINJA.search(template):
            raise TextError(f"there is no chat template {name[:120]!r}: give plain, chatml, or a file of Jinja")
    return replace(tokenizer, template=template)


def jinja(tokenizer: Tokenizer) -> str:
    """The tokenizer's template as Jinja, for other programs."""
    begin = "{{ bos_token }}" * ("bos_token" in dict(tokenizer.named) and len(tokenizer.begin) > 0)
    return begin + PLAIN if tokenizer.template == "plain" else tokenizer.template


def spelled(messages: list[dict], tokenizer: Tokenizer) -> Counter:
    """Count the special tokens spelled out in messages; a model reads them as special tokens, as in transformers."""
    texts = "\n".join(m["content"] for m in messages if isinstance(m.get("content"), str))
    return Counter(re.findall("|".join(map(re.escape, sorted(_special(tokenizer), key=len, reverse=True))), texts))


def template_notes(tokenizer: Tokenizer, model: nn.Module | None = None, tools: bool = False) -> list[str]:
    """Warnings about a tokenizer's template, and about a model's embedding of its markers, each one sentence.

    If pretraining never contained a marker, only weight decay and the gradient away from every hidden state have moved
    its embedding row, so all such rows are alike. In SmolLM2 they are 0.003 of a norm apart; markers that a short
    fine-tune has trained are 0.12 from them, and two words 0.42 or more. Resizing an embedding adds copies of its mean,
    or small noise. A row is therefore suspect if it equals another one, or if its norm is far outside the others' (the
    two signs in Land and Bartolo, "Fishing for Magikarp", 2024). tools: whether any conversation has tools.
    """
    probe = [dict(role=role, content="Hi") for role in ("user", "assistant", "user")]
    tool = dict(type="function", function=dict(name="f", description="", parameters=dict(type="object", properties={})))
    text, close, (end, *_) = render(probe, tokenizer, ask=True)[0], end_text(tokenizer), _special(tokenizer)
    plain, begin, markers = tokenizer.template == "plain", [*tokenizer.begin], {*MARKERS.findall(text), close} - {""}
    single = sorted(markers & {*_special(tokenizer)})
    odd = _odd(model, [_tokens(tokenizer, marker)[0][-1] for marker in single]) if model and not plain else []
    pieces, raw = (
        ", ".join(sorted(markers.difference(single))),
        ", ".join(m for m, is_odd in zip(single, odd) if is_odd),
    )
    facts = {
        "conversations are written as lines that begin with User: and Assistant:, not with a chat template of the base": plain,
        f"the template's {pieces} are no tokens of this base: it reads them as text, in pieces; --template plain is shorter": pieces,
        f"this base was probably never trained on {raw}: such rows of its embedding look as they did at first, and LoRA on "
        "the blocks does not train them; take the instruct model, or --template plain": raw,
        f"an answer ends in {close}, not in the tokenizer's {end}: a program that runs this model must stop there": close
        not in ("", end),
        "the template writes nothing behind an answer, so no model learns where one ends: give another --template": not close,
        "the template does not write the token that this base's texts begin with: transformers leaves it out, and llama.cpp "
        "may not": not plain and begin and _tokens(tokenizer, text)[0][: len(begin)] != begin,
        "the template does not write tools: put them into the system message": tools
        and render(probe, tokenizer, [tool], ask=True)[0] == text,
    }
    return [fact for fact, holds in facts.items() if holds]


def _odd(model, ids):
    theirs = hasattr(model, "get_input_embeddings")
    rows = (model.get_input_embeddings() if theirs else model.transformer.wte).weight.detach()  # (vocab, d)
    norms = torch.cat([part.float().norm(dim=1) for part in rows.split(8192)])
    others = norms[[i for i in range(len(norms)) if i not in ids]]
    low, middle, high = torch.quantile(others, others.new_tensor([0.001, 0.5, 0.999])).tolist()
    for i in ids:
        apart = torch.cat([(part.float() - rows[i].float()).norm(dim=1) for part in rows.split(8192)])
        apart[i] = middle
        yield bool(apart.min() < 0.02 * middle or not low / 2 < norms[i] < high * 2)


def render(
    messages: list[dict], tokenizer: Tokenizer, tools: list | None = None, ask: bool = False
) -> tuple[str, list[tuple[int, int]] | None]:
    """Render a conversation as text, with the character spans of its answers if the template marks them, else None.

    ask: end with the generation prompt. Raises TextError for whatever the template raises.
    """
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    if tokenizer.template == "plain":
        return _plain(messages, _special(tokenizer)[0], ask), None
    tagged = bool(TAG.search(tokenizer.template))
    try:
        from transformers.utils.chat_template_utils import render_jinja_template

        options = dict(tools=tools, add_generation_prompt=ask, return_assistant_tokens_mask=tagged)
        [text], spans = render_jinja_template(
            [messages], chat_template=tokenizer.template, **options, **dict(tokenizer.named)
        )
    except ImportError as error:
        cure = "run `make real`, or pip install -e '.[real]'"
        raise TextError(f"a chat template needs transformers ({first_line(error)}): {cure}") from None
    except Exception as error:
        cure = "change its messages, or give another --template"
        raise TextError(f"the chat template cannot write this conversation ({first_line(error)}): {cure}") from None
    return text, [tuple(span) for span in spans[0]] if tagged else None


def _plain(messages, end, ask):
    lines = []
    for message in messages:
        content = f" {message['content']}" if message.get("content") else ""
        lines.append(f"{message['role'].capitalize()}:{content}{end if message['role'] == 'assistant' else ''}\n")
    return "".join(lines) + "Assistant:" * ask


def _answer(messages, i, tokenizer, tools):
    """The text that ends with answer `i`, as a model sees it when asked, and the answer's start and end in it."""
    before, (through, _) = _asked(messages[:i], tokenizer, tools), render(messages[: i + 1], tokenizer, tools)
    start = len(
        before if through.startswith(before) else commonprefix([through, _header(messages[:i], tokenizer, tools)])
    )
    tail, close = _tail(tokenizer), end_text(tokenizer)
    behind = len(tail) - tail.index(close) - len(close)
    end = max(start, len(through) - behind if through.endswith(tail) else len(through.rstrip()))
    if messages[i].get("tool_calls") and not through[start:end].removesuffix(close).strip():
        raise TextError(
            "the chat template does not write tool_calls: write the call as the content, or give another --template"
        )
    return before + through[start:], len(before), len(before) + end - start


def _asked(messages, tokenizer, tools):
    """The generation prompt of a conversation, or the header that answers begin with if the template has none."""
    asked = render(messages, tokenizer, tools, ask=True)[0] if messages else ""
    return asked if messages and asked != render(messages, tokenizer, tools)[0] else _header(messages, tokenizer, tools)


def _header(messages, tokenizer, tools):
    """The conversation up to where two answers to it differ. A blank there belongs to the answer's first word."""
    answered = [[*messages, dict(role="assistant", content=content)] for content in ("Yes", "No")]
    return commonprefix([render(both, tokenizer, tools)[0] for both in answered]).rstrip(" ")


@lru_cache(maxsize=16)
def _tail(tokenizer):
    """The text that the template writes after an answer: the ending that two rendered answers share."""
    probes = [[dict(role="user", content="Hi"), dict(role="assistant", content=content)] for content in ("Yes", "No")]
    yes, no = (render(probe, tokenizer)[0] for probe in probes)
    if yes == no:
        raise TextError("the chat template does not write what messages say in plain words: give another --template")
    return commonprefix([yes[::-1], no[::-1]])[::-1]


def _special(tokenizer):
    """The written forms of special tokens; the first is the one that ends a text."""
    return (dict(tokenizer.named).get("eos_token", "</s>"), *tokenizer.special)


def _tokens(tokenizer, text):
    """The token ids of a rendered text, special tokens included, and their character spans, or None if unknown."""
    if tokenizer.mark:
        ids, places = tokenizer.mark(text)
    else:  # its only special token is the one that ends a text
        pieces = [(*tokenizer.encode(piece), tokenizer.end) for piece in text.split(_special(tokenizer)[0])]
        ids, places = [token for piece in pieces for token in piece][:-1], None
    if tokenizer.template == "plain":  # other templates write the beginning token, or their models never saw one
        begin = list(tokenizer.begin)
        ids, places = begin + ids, places and [(0, 0)] * len(begin) + places
    return ids, places


def _row(tokenizer, text, spans):
    """The tokens of `text`, with those in `spans` graded; a token across a border counts as part of the answer."""
    ids, places = _tokens(tokenizer, text)
    if places is None:
        graded = [False] * len(ids)
        for start, end in spans:
            (first, _), (last, cut) = (_reach(tokenizer, text[:at], ids) for at in (start, end))
            graded[first : last + cut] = [True] * (last + cut - first)
    else:  # a token of no width is part of the character at its place
        graded = [any(a < max(e, s + 1) and s < b for a, b in spans) for s, e in places]
    parts = [[]]
    for i, (token, counts) in enumerate(zip(ids, graded)):
        if (counts and i > 0) == len(parts) % 2:
            parts.append([])
        parts[-1].append(token)
    return tuple(parts)


def _reach(tokenizer, beginning, ids):
    """How many of `ids` lie within `beginning`, and whether its end cuts the next token."""
    own = _tokens(tokenizer, beginning)[0]
    same = len(commonprefix([own, ids]))
    return same, same < len(own)
