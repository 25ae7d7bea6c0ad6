"""Budgets that are a share of each prompt: which texts have the same, and the method at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from nsa_eval.errors import UserError
from nsa_models.methods import Method, MethodError, MethodShare

T = TypeVar("T")


def method_at(share: MethodShare, budget: int) -> Method:
    """The method at the budget that a share comes to.

    Raises:
        UserError: One that is too small for the method.
    """
    try:
        return share.at(budget)
    except MethodError as error:
        raise UserError(str(error)) from None


def by_budget(
    share: MethodShare, items: Sequence[T], length: Callable[[T], int]
) -> Iterator[tuple[Method, list[T]]]:
    """Items by the budgets that a share comes to, the smallest first, each with the method.

    Args:
        share: A method at a share of each text.
        items: Texts of any kind.
        length: Tokens of one.

    Raises:
        UserError: A text that is too short for the method at this share.
    """
    found: dict[int, list[T]] = {}
    for item in items:
        found.setdefault(share.budget(length(item)), []).append(item)
    for budget, some in sorted(found.items()):
        yield method_at(share, budget), some
