"""Score against cost: the Pareto front, and values between measured points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Between:
    """A value of a curve at a cost."""

    value: float
    interpolated: bool
    """Whether it lies between two measured points, not on one."""


def pareto(points: Sequence[tuple[float, float]], *, higher_is_better: bool = True) -> list[int]:
    """The points that no other beats: none costs less and scores as well, or as much and scores better.

    Args:
        points: (cost, score) of each.
        higher_is_better: Of the score.

    Returns:
        Their numbers by rising cost; of equal points all.
    """
    sign = 1.0 if higher_is_better else -1.0
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1]))
    front: list[int] = []
    for i in order:
        score = points[i][1]
        if not front or sign * score > sign * points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


def between(points: Sequence[tuple[float, float]], cost: float) -> Between | None:
    """The score of a curve at a cost: linear between the measured points on either side, never beyond them.

    Points of one cost count as their mean: which of them the curve goes through isn't known.

    Args:
        points: (cost, score), in any order.
        cost: Where.

    Returns:
        None outside of the measured costs, and where all points have one cost that isn't this one.
    """
    by_cost: dict[float, list[float]] = {}
    for at, score in points:
        by_cost.setdefault(at, []).append(score)
    curve = sorted((at, sum(scores) / len(scores)) for at, scores in by_cost.items())
    for at, score in curve:
        if abs(at - cost) <= 1e-9 * max(abs(at), abs(cost)):
            return Between(score, interpolated=False)
    for (left, low), (right, high) in pairwise(curve):
        if left < cost < right:
            return Between(low + (high - low) * (cost - left) / (right - left), interpolated=True)
    return None
