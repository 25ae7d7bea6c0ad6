"""Whether a reply's answer is the right one, and whether two replies give the same.

Answers are compared with math-verify (github.com/huggingface/Math-Verify): `verify(gold, answer)`, in this
order, since it isn't symmetric. Gold answers are LaTeX, which it reads only inside of a math environment:
they are put between dollar signs.
"""

import importlib.util
import logging
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from nsa_tasks._errors import TaskDataError
from nsa_tasks.replies import RIGHT, SILENT

TIME_LIMIT = 10
"""Seconds for one answer to be parsed, or one pair to be compared: a tower of powers would never end. Twice
math-verify's own, whose answers took 50 ms at most; it needs a signal, and off the main thread there is none.
"""
_BRACE = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\.|[{}]", re.DOTALL)
"""Braces, and boxes that open one; an escaped brace is none, and is taken with its backslash."""
_OPEN, _CLOSE = "<think>", "</think>"


class NoMathVerifyError(TaskDataError):
    """math-verify isn't installed."""

    def __init__(self) -> None:
        """Says how to install it."""
        super().__init__(
            "answers are compared with math-verify, which isn't installed: pip install 'nsa-eval[reasoning]'"
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reply says."""

    text: str
    """The answer as it stands in the reply; empty where there is none."""
    parsed: tuple[Any, ...] = ()
    """What math-verify reads in it."""
    why: str = ""
    """Why there is no answer."""


def after_thinking(reply: str, *, opened: bool = False) -> str | None:
    """The part of a reply that counts: what follows its last closing tag of thinking.

    Without a closing tag thinking that began never ended, and the numbers in it are no answer.

    Args:
        reply: The reply.
        opened: Whether the prompt ended with an opening tag, as some chat templates do.

    Returns:
        None where thinking never ended. The whole reply where there was none.
    """
    _, closed, rest = reply.rpartition(_CLOSE)
    if closed:
        return rest
    return None if opened or _OPEN in reply else reply


def opens_thinking(prompt: str) -> bool:
    """Whether a prompt, as it is sent, leaves the model inside of thinking."""
    return prompt.rstrip().endswith(_OPEN)


def last_box(text: str) -> str | None:
    r"""The content of the last \boxed{...} that is closed and isn't empty; None where there is none.

    math-verify itself takes boxes that stand close together as one answer with several parts, and so marks
    "\boxed{33}. No: \boxed{34}" wrong where 34 is right.
    """
    opened: list[int | None] = []  # open braces: of a box where its content starts
    last: tuple[int, int] | None = None
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "}" and opened:
            start = opened.pop()
            if (
                start is not None
                and text[start : match.start()].strip()
                and (last is None or start > last[0])
            ):
                last = start, match.start()
        elif token == "{":
            opened.append(None)
        elif token.startswith("\\") and len(token) > 2:
            opened.append(match.end())
    return None if last is None else text[slice(*last)]


def read_answer(reply: str, *, opened: bool = False) -> Answer:
    """Extract a reply's answer: the last box, else the last thing that math-verify takes for one.

    Args:
        reply: The reply.
        opened: Whether it began inside of thinking.
    """
    text = after_thinking(reply, opened=opened)
    if text is None:
        return Answer("", why="thinking never ended")
    box = last_box(text)
    parsed = _parse(text if box is None else _boxed(box))
    if not parsed:
        return Answer("", why="no answer")
    return Answer((box if box is not None else str(parsed[-1])).strip(), tuple(parsed))


def read_gold(answer: str) -> Answer:
    """Parse a right answer."""
    return Answer(answer, tuple(_parse(f"${answer}$")))


def same(gold: Answer, answer: Answer) -> bool:
    """Whether an answer is as good as another, the right one first."""
    if not gold.parsed or not answer.parsed:
        return False
    if gold.text == answer.text:
        return True
    return bool(_math_verify().verify(list(gold.parsed), list(answer.parsed), timeout_seconds=_time_limit()))


def votes(gold: Answer, answers: Sequence[Answer]) -> list[int]:
    """Number the answers of a problem's replies, equal ones alike.

    Returns:
        `RIGHT` where it is the right one, `SILENT` where there is none, else 1, 2, ... in the order in which
        wrong answers are first given.
    """
    wrong: list[Answer] = []
    found = []
    for answer in answers:
        if not answer.parsed:
            found.append(SILENT)
        elif same(gold, answer):
            found.append(RIGHT)
        else:
            known = next((number for number, one in enumerate(wrong, 1) if same(one, answer)), None)
            if known is None:
                wrong.append(answer)
                known = len(wrong)
            found.append(known)
    return found


def failing_golds(answers: Iterable[str]) -> list[str]:
    """Right answers that don't pass against themselves in a box: none is worth asking for."""
    return [
        answer
        for answer in dict.fromkeys(answers)
        if not _verified(read_gold(answer), read_answer(_boxed(answer)))
    ]


def _verified(gold: Answer, answer: Answer) -> bool:
    """As `same`, and never for the reason that the texts are equal."""
    verify = _math_verify().verify
    return bool(gold.parsed and verify(list(gold.parsed), list(answer.parsed), timeout_seconds=_time_limit()))


def _boxed(answer: str) -> str:
    return f"$\\boxed{{{answer}}}$"


def _parse(text: str) -> list[Any]:
    return list(_math_verify().parse(text, extraction_config=_extraction(), parsing_timeout=_time_limit()))


@cache
def _extraction() -> tuple[Any, ...]:
    parser = importlib.import_module("math_verify.parser")
    # Its default puts phrases such as "the final answer is" before boxes. `last_box` has taken those with
    # braces out before; this holds the order for whatever else it takes for a box.
    return (parser.LatexExtractionConfig(boxed_match_priority=0), parser.ExprExtractionConfig())


@cache
def _math_verify() -> Any:  # noqa: ANN401  (a module without types)
    if importlib.util.find_spec("math_verify") is None:
        raise NoMathVerifyError
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it prints whole replies that took too long
    return importlib.import_module("math_verify")


def _time_limit() -> int | None:
    return TIME_LIMIT if threading.current_thread() is threading.main_thread() else None
