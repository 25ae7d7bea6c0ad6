"""The documents of a row: paired between two models, of one task or of all tasks of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nsa_eval.comparison.scores import Floats, Scores, document_scores, group_scores
from nsa_eval.results import GroupResult, ModelRun, Sample, TaskResult

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Pairs:
    """What two models scored on the same documents."""

    baseline: Scores
    """Mean score of the baseline on each document."""
    candidate: Scores
    """The same of the candidate."""
    lengths: list[int | None]
    samples: list[int]
    """Samples behind each document, [n]."""

    @property
    def n(self) -> int:
        """Documents."""
        return len(self.baseline.values)

    @property
    def differences(self) -> Scores:
        """Candidate minus baseline."""
        return Scores(self.candidate.values - self.baseline.values, self.baseline.strata)

    def at(self, length: int) -> Pairs:
        """Those of one length."""
        keep = [index for index, value in enumerate(self.lengths) if value == length]
        baseline, candidate = (Scores(side.values[keep]) for side in (self.baseline, self.candidate))
        return Pairs(baseline, candidate, [length] * len(keep), [self.samples[index] for index in keep])


@dataclass(frozen=True, slots=True)
class Matched:
    """Pairs, and what didn't match."""

    pairs: Pairs | None
    """None where there is nothing to compare."""
    notes: tuple[str, ...] = ()


def task_pairs(left: TaskResult, right: TaskResult, metric: str, filter_name: str) -> Matched:
    """The documents of a task that both models have a score of.

    Args:
        left: The baseline's.
        right: The candidate's.
        metric: Which score.
        filter_name: Under which filter.
    """
    samples = left.filters[filter_name]
    a, b = document_scores(samples, metric), document_scores(right.filters[filter_name], metric)
    shared = [doc for doc in a if doc in b]
    where = f"{left.name}, {metric}"
    notes = []
    if len(shared) < max(len(a), len(b)):
        notes.append(f"{where}: only {len(shared)} documents have this metric in both models")
    sides = [_values(side, shared) for side in (a, b)]
    if (broken := _broken(sides)) or not shared:
        return Matched(None, (*notes, f"{where}: not compared, {broken} scores are not finite numbers"))
    first: dict[str, Sample] = {}
    counts: dict[str, int] = {}
    for sample in samples:
        first.setdefault(sample.doc_hash, sample)
        counts[sample.doc_hash] = counts.get(sample.doc_hash, 0) + sample.repeats
    lengths = [first[doc].length for doc in shared]
    pairs = Pairs(Scores(sides[0]), Scores(sides[1]), lengths, [counts[doc] for doc in shared])
    return Matched(pairs, tuple(notes))


def group_pairs(
    group: GroupResult, left: ModelRun, right: ModelRun, metric: str, filter_name: str
) -> Matched:
    """The documents of all tasks of a group that both models have a score of.

    Args:
        group: The baseline's.
        left: The baseline.
        right: The candidate.
        metric: Which score.
        filter_name: Under which filter.
    """
    a, b = (group_scores(group, model, metric, filter_name) for model in (left, right))
    shared = [key for key in a if key in b]
    sides = [_values(side, shared) for side in (a, b)]
    where = f"{group.name}, {metric}"
    if (broken := _broken(sides)) or not shared:
        return Matched(None, (f"{where}: not compared, {broken} scores are not finite numbers",))
    tasks = [task for task, _ in shared]
    strata = None if group.by_size[f"{metric},{filter_name}"] else np.unique(tasks, return_inverse=True)[1]
    baseline, candidate = (Scores(side, strata) for side in sides)
    return Matched(Pairs(baseline, candidate, [None] * len(shared), [1] * len(shared)))


def _values(scores: Mapping[K, float], keys: Sequence[K]) -> Floats:
    return np.array([scores[key] for key in keys], dtype=np.float64)


def _broken(sides: list[Floats]) -> int:
    return sum(int((~np.isfinite(side)).sum()) for side in sides)
