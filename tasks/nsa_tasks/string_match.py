"""RULER's two string matches, for one reply: which of the answers stand in it, case ignored.

The official scorers average over samples and times 100 (NVIDIA/RULER, scripts/eval/synthetic/constants.py);
here a sample's score is 0..1, and lm-eval averages.
"""

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def clean(reply: str) -> str:
    """Clean a reply as RULER does: strip, turn each control character into a newline, strip again."""
    return _CONTROL.sub("\n", reply.strip()).strip()


def string_match_all(reply: str, answers: Sequence[str]) -> float:
    """The share of the answers that the reply holds (`string_match_all`: all but question answering)."""
    text = clean(reply).lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)


def string_match_part(reply: str, answers: Sequence[str]) -> float:
    """1.0 when the reply holds at least one of the answers (`string_match_part`: question answering)."""
    text = clean(reply).lower()
    return float(any(answer.lower() in text for answer in answers))
