"""Writes a Modelfile, from which Ollama creates a model: the model file, the template, and what ends an answer.

Ollama has its own template language, Go's. It recognizes some chat templates; others must be given in that language.
"""

from llm.errors import TextError
from llm.text import chat
from llm.text.examples import BREAK
from llm.tokenizer import Tokenizer

ROLES = S, U, A = "system", "user", "assistant"


def modelfile(tokenizer: Tokenizer, report: dict, base: str = "base.gguf") -> str:
    """The text of a run's Modelfile, with a chat template, or the bare prompt if the run saw no conversations.

    report: the run's `run.json`. base: the file name of the base's own GGUF.
    """
    if report and not report.get("chat"):
        template = "{{ .Prompt }}" + BREAK * bool(report.get("completes"))
    else:
        template = go_template(tokenizer)
    lines = ["# ollama create mine -f Modelfile, then: ollama run mine", "FROM ./model.gguf"]
    if template is None:
        lines.append(
            "# no TEMPLATE: this one has no plain form in Ollama's language; check what `ollama show` says of it"
        )
    else:
        lines.append(f'TEMPLATE """{template}"""')
    if stop := chat.end_text(tokenizer):
        lines.append(f'PARAMETER stop "{stop}"')
    lines += [
        "",
        "# model.gguf is what `python -m llm export --format merged` writes. Base and adapter apart (`--format gguf`) are the",
        "# second way, with these lines in place of FROM; Ollama's support of ADAPTER is reported broken since 0.34.1.",
        f"# FROM ./{base}",
        "# ADAPTER ./adapter.gguf",
    ]
    return "\n".join(lines) + "\n"


def go_template(tokenizer: Tokenizer) -> str | None:
    """The chat template in Ollama's language, if each turn is fixed text around its content; otherwise None."""
    begin = dict(tokenizer.named).get("bos_token", "") if tokenizer.begin else ""  # llama.cpp adds it

    def write(*roles, ask=False):
        messages = [dict(role=role, content=f"@{role}@") for role in roles]
        return chat.render(messages, tokenizer, ask=ask)[0].removeprefix(begin)

    try:
        turns = {U: write(U, A, U).removeprefix(write(U, A)), A: write(U, A).removeprefix(write(U))}
        default, turns[S] = (write(*roles).removesuffix(turns[U]) for roles in ((U,), (S, U)))
        ask = write(U, ask=True).removeprefix(write(U))
        for roles in ((U,), (S, U), (U, A, U), (S, U, A, U, A, U)):
            if default * (S not in roles) + "".join(turns[role] for role in roles) + ask != write(*roles, ask=True):
                return None
    except TextError:  # the template rejects a system message
        return None
    if any(mark in text for text in (*turns.values(), default, ask) for mark in ("{{", '"""')):
        return None
    said = [turns[role].replace(f"@{role}@", "{{ .Content }}") for role in ROLES]
    default = "{{ if not .System }}" + default + "{{ end }}" if default else ""
    first, second, third = said
    choice = (
        f'{{{{ if eq .Role "{S}" }}}}{first}{{{{ else if eq .Role "{U}" }}}}{second}{{{{ else }}}}{third}{{{{ end }}}}'
    )
    return default + "{{ range .Messages }}" + choice + "{{ end }}" + ask
