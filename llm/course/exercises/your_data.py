"""Checks of what one does with data of one's own: which tokens of a conversation count, and when to stop."""

from collections.abc import Callable

from llm.course.exercises.speak import Comparison, spoken

START, END = "<|im_start|>", "<|im_end|>"


@spoken
def check_graded(graded: Callable) -> str | None:
    """`graded(tokens)`, the tokens of a conversation in ChatML: True for each that is part of an answer, or ends one."""
    chats = (
        [("user", ["Hi"]), ("assistant", ["Hello", "there"])],
        [("system", ["Be", "short"]), ("user", ["One", "\n", "or", "two"]), ("assistant", ["Two"])],
        [("user", ["A"]), ("assistant", ["B", "\n", "C"]), ("user", ["D", "E"]), ("assistant", ["F"])],
        [("user", ["Send"]), ("assistant", ["{", "}"]), ("tool", ["booked"]), ("assistant", ["Done", "\n", "."])],
    )
    slips = {
        "every token counts. A question is read and not learned": _marked(lambda *_: True),
        "the user's turns count as well. Only the assistant's do": _marked(lambda kind, *_: kind in ("content", "end")),
        "the header of an answer counts, but whoever asks writes it": _marked(
            lambda kind, role, *_: role == "assistant" and kind != "behind"
        ),
        f"the end token does not count. A model that never learns {END} does not stop": _marked(
            lambda kind, role, *_: role == "assistant" and kind == "content"
        ),
        f"the line break behind {END} counts, but the model has stopped by then": _marked(
            lambda kind, role, *_: role == "assistant" and kind in ("content", "end", "behind")
        ),
        "only the last answer counts. Here every answer does": _marked(
            lambda kind, role, last, _: role == "assistant" and last and kind in ("content", "end")
        ),
        "an answer may have a line break. Only the first one after the role ends the header": _marked(
            lambda kind, role, _, broken: role == "assistant" and kind in ("content", "end") and not broken
        ),
    }
    right = _marked(lambda kind, role, *_: role == "assistant" and kind in ("content", "end"))
    return Comparison(
        invite="go through the tokens and remember whose turn it is. Where does an answer begin, and where does it end?",
        otherwise="those are not the tokens of the answers. An answer begins behind the header's line break",
        unfit=_no_marks,
        read=lambda marks: [bool(mark) for mark in marks],
        same=lambda marks, goal: marks == goal,
    ).diagnose(graded, [(_tokens(chat),) for chat in chats], right, slips)


def _tokens(chat):
    return [t for role, content in chat for t in (START, role, "\n", *content, END, "\n")]


def _marked(counts):
    """A formula for the marks: counts(kind of the token, role, is it the last turn, was there a line break in it)."""

    def marks(tokens):
        found, kind, role, broken = [], "", "", False
        for i, token in enumerate(tokens):
            if token == START:
                kind, role, broken = "header", tokens[i + 1], False
            elif kind == "header" and tokens[i - 1] == "\n":
                kind = "content"
            elif kind == "end":
                kind = "behind"
            broken |= kind == "content" and token == "\n"
            kind = "end" if token == END else kind
            found.append(bool(counts(kind, role, START not in tokens[i + 1 :], broken)))
        return found

    return marks


def _no_marks(marks, tokens):
    if not isinstance(marks, list | tuple) or any(mark not in (True, False) for mark in marks):
        return "it should return a list of True and False"
    if len(marks) != len(tokens):
        return f"it returns {len(marks)} marks for {len(tokens)} tokens"


@spoken
def check_stop(stop: Callable) -> str | None:
    """`stop(losses, patience)`: the place of the best loss so far, and that of the loss at which training stops: the first
    after which `patience` losses in a row were no new best, or else the last."""
    cases = [
        ([3.0, 2.0, 1.5, 1.6, 1.7, 1.8, 1.9], 2),
        ([3.0, 2.0, 2.5, 2.4, 2.3, 1.0], 2),
        ([3.0, 2.0, 2.0, 2.0, 1.9], 2),
        ([2.0, 2.1, 1.9, 2.2, 2.1, 2.0, 1.0], 3),
        ([3.0, 2.0, 1.0], 2),
    ]
    slips = {
        "it never stops": lambda losses, patience: (_first_best(losses), len(losses) - 1),
        "it stops one measurement too early": lambda losses, patience: _stop(losses, patience - 1),
        "it stops one measurement too late": lambda losses, patience: _stop(losses, patience + 1),
        "the best loss lies behind the place where it stops, so nobody has seen it": lambda losses, patience: (
            _first_best(losses),
            _stop(losses, patience)[1],
        ),
        "it keeps the last step and not the best": lambda losses, patience: (_stop(losses, patience)[1],) * 2,
        "a loss that only falls below the one before it is no new best": lambda losses, patience: _stop(
            losses, patience, lambda loss, best, before: loss < before
        ),
        "a loss that equals the best is no new best": lambda losses, patience: _stop(
            losses, patience, lambda loss, best, before: loss <= best
        ),
        "those are the two the wrong way around. The best comes first": lambda losses, patience: _stop(
            losses, patience
        )[::-1],
    }
    return Comparison(
        invite="remember the place of the best loss. How far is the present one behind it?",
        otherwise="those are not the places. For [3, 2, 2.5, 2.4] and a patience of 2 they are 1 and 3",
        unfit=lambda pair, *_: (
            None
            if isinstance(pair, list | tuple) and len(pair) == 2 and all(type(i) is int for i in pair)
            else "it should return two whole numbers, the places of the best loss and of the last one"
        ),
        read=tuple,
        same=lambda pair, goal: pair == goal,
    ).diagnose(stop, cases, _stop, slips)


def _first_best(losses):
    return losses.index(min(losses))


def _stop(losses, patience, better=lambda loss, best, before: loss < best):
    best = since = 0
    for i, loss in enumerate(losses):
        if i == 0 or better(loss, losses[best], losses[i - 1]):
            best = since = i
        elif i - since >= patience:
            return best, i
    return best, len(losses) - 1
