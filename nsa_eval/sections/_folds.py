"""Parts of a section that are folded away together: the members of a group, behind the group's own scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from nsa_eval._words import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Where a part stands in a fold. A template opens a `<details>` before it and closes one after it."""

    opens: str = ""
    """The summary of the fold that begins with this part."""
    closes: bool = False
    """Whether the fold ends with it."""

    inside: bool = False
    """Whether it is folded away: then the page's navigation has no link to it."""


def folds(groups: Sequence[str]) -> list[Fold]:
    """Fold neighbours of one group together.

    Args:
        groups: For each part the outermost group that it is a member of; empty for parts that stand alone.
    """
    found: list[Fold] = []
    for group, run in groupby(groups):
        count = len(list(run))
        if not group:
            found += [Fold()] * count
            continue
        title = f"{counted(count, 'member')} of {group}, one by one"
        found += [
            Fold(opens=title if i == 0 else "", closes=i == count - 1, inside=True) for i in range(count)
        ]
    return found
