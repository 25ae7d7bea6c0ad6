"""One model's scores: per document, and their mean with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nsa_eval.comparison._types import Estimate, Unit
from nsa_eval.comparison.intervals import bootstrap, wilson
from nsa_eval.results import GroupResult, ModelRun, Sample

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """One number per document. Documents count alike, or the tasks (strata) that they belong to do."""

    values: Floats
    """[n]"""
    strata: NDArray[np.intp] | None = None
    """The task of each document as a number from 0, [n]; None where documents count alike."""

    @property
    def weighted(self) -> Floats:
        """Values whose mean is the score, [n]: each of the n_k documents of one of K tasks as n / (K n_k)."""
        if self.strata is None:
            return self.values
        sizes = np.bincount(self.strata)
        shares: Floats = len(self.values) / (len(sizes) * sizes)
        return self.values * shares[self.strata]

    @property
    def spread(self) -> Floats:
        """Values whose mean is the score and whose variance is its sampling variance, [n].

        A mean over tasks varies with the documents within each task, not with the tasks' differences: these
        are the values of its linear approximation (its influence function, as in survey statistics; Lohr,
        Sampling, section 3.2).
        """
        if self.strata is None:
            return self.values
        sizes = np.bincount(self.strata)
        means = np.bincount(self.strata, self.values) / sizes
        shares: Floats = len(self.values) / (len(sizes) * sizes)
        spread: Floats = means.mean() + shares[self.strata] * (self.values - means[self.strata])
        return spread


def document_scores(samples: Sequence[Sample], metric: str) -> dict[str, float]:
    """Mean score of each document, by its hash: several samples of one document count as one observation.

    Treating them as independent would make every interval too narrow (Miller 2024, arXiv 2411.00640, section
    4).
    """
    scores: dict[str, list[float]] = {}
    for sample in samples:
        if metric in sample.metrics:
            scores.setdefault(sample.doc_hash, []).append(sample.metrics[metric])
    return {doc: float(np.mean(values)) for doc, values in scores.items()}


def group_scores(
    group: GroupResult, model: ModelRun, metric: str, filter_name: str
) -> dict[tuple[str, str], float]:
    """Mean score of each document of a group's tasks, by task and hash; tasks without the metric add none.

    Args:
        group: The group.
        model: Whose scores.
        metric: Which score.
        filter_name: Under which filter.
    """
    return {
        (task, doc): score
        for task in group.tasks
        if task in model.tasks
        for doc, score in document_scores(model.tasks[task].filters.get(filter_name, ()), metric).items()
    }


def is_binary(values: Floats) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def unit_of(values: Floats, higher_is_better: bool | None) -> Unit:
    """ "points" for shares of success within 0..1, shown times 100; "raw" for anything else (perplexity,
    BLEU)."""
    inside = bool(((values >= 0) & (values <= 1)).all())
    return "points" if inside and higher_is_better is not False else "raw"


def score_estimate(
    scores: Scores, *, binary: bool, unit: Unit, confidence: float, resamples: int, seed: Sequence[int]
) -> Estimate:
    """The mean of one model's scores with its interval: Wilson if every score is 0 or 1, the bootstrap
    otherwise.

    Args:
        scores: One per document, at least one.
        binary: Whether the task's scores are all 0 or 1, and documents count alike.
        unit: "points" for scores within 0..1, whose bounds an interval may use.
        confidence: Level of the interval.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.
    """
    values = scores.spread
    mean = float(values.mean())
    if binary:
        return Estimate(mean=mean, interval=wilson(round(float(values.sum())), len(values), confidence))
    bounds = (0.0, 1.0) if unit == "points" else None
    rng = np.random.default_rng(seed)
    return Estimate(
        mean=mean, interval=bootstrap(values, confidence, resamples=resamples, rng=rng, bounds=bounds)
    )
