"""What each of the 13 tasks is: the official scripts/synthetic.yaml with its generators' own numbers."""

from dataclasses import dataclass
from typing import Literal

SHORT = 4096
"""Tokens. Requests below this length have smaller steps, and cwe smaller counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all tasks have."""

    new_tokens: int
    """The reply's budget, inside each length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Niah(Setting):
    """Needles in a haystack."""

    haystack: Literal["noise", "essay", "needle"]
    key: Literal["words", "uuids"] = "words"
    value: Literal["numbers", "uuids"] = "numbers"
    keys: int = 1
    """Keys hidden."""
    values: int = 1
    """Values hidden under each."""
    queries: int = 1
    """Keys asked for."""
    new_tokens: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Vt(Setting):
    """Variable tracking."""

    hops: int = 4
    """Assignments after the first; one variable more."""
    new_tokens: int = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Cwe(Setting):
    """Common words."""

    common: int = 10
    """Words that are asked for."""
    new_tokens: int = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Fwe(Setting):
    """Frequent words."""

    alpha: float = 2.0
    """Of the zeta distribution."""
    letters: int = 6
    """Of a coded word."""
    new_tokens: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Qa(Setting):
    """Questions over documents."""

    dataset: Literal["squad", "hotpotqa"]
    new_tokens: int = 32


TASKS: dict[str, Setting] = {
    "ruler_niah_single_1": Niah(haystack="noise"),
    "ruler_niah_single_2": Niah(haystack="essay"),
    "ruler_niah_single_3": Niah(haystack="essay", value="uuids"),
    "ruler_niah_multikey_1": Niah(haystack="essay", keys=4),
    "ruler_niah_multikey_2": Niah(haystack="needle"),
    "ruler_niah_multikey_3": Niah(haystack="needle", key="uuids", value="uuids"),
    "ruler_niah_multivalue": Niah(haystack="essay", values=4),
    "ruler_niah_multiquery": Niah(haystack="essay", keys=4, queries=4),
    "ruler_vt": Vt(),
    "ruler_cwe": Cwe(),
    "ruler_fwe": Fwe(),
    "ruler_qa_1": Qa(dataset="squad"),
    "ruler_qa_2": Qa(dataset="hotpotqa"),
}
