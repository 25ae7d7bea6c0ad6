"""One model's scores: per document, and their mean with its interval."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nsa_eval.comparison._types import Estimate, Unit
from nsa_eval.comparison.intervals import bootstrap, wilson
from nsa_eval.results import Sample

Floats = NDArray[np.float64]


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


def is_binary(values: Floats) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def unit_of(values: Floats, higher_is_better: bool | None) -> Unit:
    """ "points" for shares of success within 0..1, shown times 100; "raw" for anything else (perplexity,
    BLEU)."""
    inside = bool(((values >= 0) & (values <= 1)).all())
    return "points" if inside and higher_is_better is not False else "raw"


def score_estimate(
    values: Floats, *, binary: bool, unit: Unit, confidence: float, resamples: int, seed: Sequence[int]
) -> Estimate:
    """The mean of one model's scores with its interval: Wilson if every score is 0 or 1, the bootstrap
    otherwise.

    Args:
        values: One score per document, [n], n >= 1.
        binary: Whether the task's scores are all 0 or 1.
        unit: "points" for scores within 0..1, whose bounds an interval may use.
        confidence: Level of the interval.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.
    """
    mean = float(values.mean())
    if binary:
        return Estimate(mean=mean, interval=wilson(round(float(values.sum())), len(values), confidence))
    bounds = (0.0, 1.0) if unit == "points" else None
    rng = np.random.default_rng(seed)
    return Estimate(
        mean=mean, interval=bootstrap(values, confidence, resamples=resamples, rng=rng, bounds=bounds)
    )
