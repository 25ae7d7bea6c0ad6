"""What models reply: how long, how often cut by the budget, and what several replies to a problem come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nsa_eval.comparison.intervals import unanimous
from nsa_eval.material import Material
from nsa_eval.results import Sample
from nsa_eval.sections import Section
from nsa_reports import SectionData
from nsa_tasks.replies import (
    RIGHT,
    SILENT,
    bootstrap,
    majority_at_k,
    pass_at_k,
    problems_error,
    replies_error,
)

_RESAMPLES = 2000
_BINS = 24
_MOST_K = 7
"""Columns of the table: 1, 2, 4, ... 32 and n."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long one model's replies to one task are, in words."""

    task: str
    model: str
    replies: int
    cut: int
    """Replies that the budget ended."""
    right_though_cut: int | None
    """Of those the ones with the right answer; None where the task doesn't say it of each reply."""
    silent: int | None
    """Replies without an answer, as above."""
    median: int
    low: int
    high: int
    """The 10th and 90th percent."""
    longest: int
    bars: tuple[int, ...]
    """A histogram from 0 to the task's longest reply: heights in pixels of 24."""

    @property
    def cut_share(self) -> str:
        """`12.5 %`."""
        return f"{100 * self.cut / self.replies:.1f} %"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A score at one k, as text."""

    value: str
    interval: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """What one model's n replies to each problem of one task come to."""

    model: str
    problems: int
    replies: int
    """To each problem, n; of the problem with the fewest, where they aren't alike."""
    average: str
    """avg@n in percent."""
    error: str
    """Its standard error in points: over problems and replies."""
    replies_error: str
    """The same over replies alone; both are empty where nothing varies."""
    passed: tuple[Point, ...]
    """pass@k for each k."""
    majority: tuple[Point, ...]
    """maj@k for each k."""
    curve: str
    """pass@k as points of an SVG line, 120 x 28."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskVotes:
    """One task whose replies give answers that can be counted."""

    task: str
    k: tuple[int, ...]
    models: tuple[Votes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies(SectionData):
    """What the section shows."""

    lengths: tuple[Lengths, ...]
    votes: tuple[TaskVotes, ...]

    @property
    def says_answers(self) -> bool:
        """Whether any task says of each reply whether it has an answer."""
        return any(row.silent is not None for row in self.lengths)


def build(material: Material) -> Replies | None:
    """Every task whose replies were counted; None where there are none."""
    lengths: list[Lengths] = []
    votes: list[TaskVotes] = []
    for task in material.tasks:
        samples = _samples(material, task)
        longest = max((max(one.new_tokens, default=0) for own in samples.values() for one in own), default=0)
        lengths += [
            row for label, own in samples.items() if (row := _lengths(task, label, own, longest)) is not None
        ]
        if (found := _votes(task, samples, material.figures.confidence)) is not None:
            votes.append(found)
    return Replies(lengths=tuple(lengths), votes=tuple(votes)) if lengths or votes else None


def _samples(material: Material, task: str) -> dict[str, tuple[Sample, ...]]:
    """Each model's samples of a task under its main filter: every filter has the same replies."""
    _, filter_name = material.figures.metrics(task)[0]
    return {
        label: model.tasks[task].filters.get(filter_name, ()) if task in model.tasks else ()
        for label, model in material.models.items()
    }


def _lengths(task: str, label: str, samples: Sequence[Sample], longest: int) -> Lengths | None:
    counted = [one for one in samples if one.new_tokens]
    if not counted:
        return None
    tokens = np.array([length for one in counted for length in one.new_tokens])
    finished = [end for one in counted for end in one.finished]
    votes = [vote for one in counted for vote in one.votes]
    known = len(votes) == len(finished) == len(tokens)
    bars, _ = np.histogram(tokens, bins=_BINS, range=(0, max(1, longest)))
    low, median, high = (int(x) for x in np.quantile(tokens, [0.1, 0.5, 0.9]))
    return Lengths(
        task=task,
        model=label,
        replies=len(tokens),
        cut=finished.count(False),
        right_though_cut=sum(v == RIGHT and not end for v, end in zip(votes, finished, strict=True))
        if known
        else None,
        silent=votes.count(SILENT) if known else None,
        median=median,
        low=low,
        high=high,
        longest=int(tokens.max()),
        bars=tuple(math.ceil(24 * count / bars.max()) for count in bars.tolist()),
    )


def _votes(task: str, samples: dict[str, tuple[Sample, ...]], confidence: float) -> TaskVotes | None:
    by_model = {label: [one.votes for one in own if one.votes] for label, own in samples.items()}
    by_model = {label: problems for label, problems in by_model.items() if problems}
    if not by_model:
        return None
    n = min(len(votes) for problems in by_model.values() for votes in problems)
    powers = [1 << exponent for exponent in range(n.bit_length())]
    k = tuple(dict.fromkeys([*powers[: _MOST_K - 1], n]))
    return TaskVotes(
        task=task,
        k=k,
        models=tuple(_model(label, problems, k, confidence) for label, problems in by_model.items()),
    )


def _model(label: str, problems: list[tuple[int, ...]], ks: Sequence[int], confidence: float) -> Votes:
    means = [votes.count(RIGHT) / len(votes) for votes in problems]
    alone = replies_error([votes.count(RIGHT) for votes in problems], [len(votes) for votes in problems])
    passed = [_point(problems, "pass", k, confidence) for k in ks]
    values = [float(np.mean([_pass(votes, k) for votes in problems])) for k in ks]
    step = 120 / max(1, len(ks) - 1)
    return Votes(
        model=label,
        problems=len(problems),
        replies=min(map(len, problems)),
        average=f"{100 * float(np.mean(means)):.1f}",
        error=_points(problems_error(means)),
        replies_error=_points(alone),
        passed=tuple(passed),
        majority=tuple(_point(problems, "maj", k, confidence) for k in ks),
        curve=" ".join(f"{i * step:.1f},{26 - 24 * value:.1f}" for i, value in enumerate(values)),
    )


def _point(problems: list[tuple[int, ...]], kind: str, k: int, confidence: float) -> Point:
    """pass@k or maj@k with its interval by the bootstrap over problems, and over the replies within each."""

    def score(votes: Sequence[int]) -> float:
        return _pass(votes, k) if kind == "pass" else majority_at_k(votes, k)

    values = [score(votes) for votes in problems]
    mean = float(np.mean(values))
    low, high = bootstrap(
        problems, score, confidence=confidence, resamples=_RESAMPLES, rng=np.random.default_rng([0, k])
    )
    if high - low < 1e-12:  # a bootstrap of what always is the same knows nothing of what else could be
        known = unanimous(mean, len(problems), confidence, (0.0, 1.0))
        low, high = known.low, known.high
    return Point(value=f"{100 * mean:.1f}", interval=f"{100 * low:.1f} to {100 * high:.1f}")


def _pass(votes: Sequence[int], k: int) -> float:
    return pass_at_k(len(votes), list(votes).count(RIGHT), k)


def _points(error: float) -> str:
    """A standard error; nothing for 0, which says that all were alike and not that the score is certain."""
    return f"{100 * error:.1f}" if error > 0 else ""


SECTION = Section(title="Replies", order=60, build=build)
