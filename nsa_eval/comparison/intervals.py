"""Confidence intervals: of one model's mean score, and of the paired mean difference.

One rule decides the method, before the numbers are looked at:

- a score that is 0 or 1 on every document: Wilson's score interval for a model's mean, Tango's score interval
  for the paired difference (the one-sample form of the same idea: McNemar's statistic turned into an
  interval);
- any other score: the bias-corrected and accelerated (BCa) bootstrap over the documents.

The bootstrap can only resample what it has seen. Twenty differences that are all 0 give an interval of width
0, which would read as certainty. There, and wherever else the resamples all agree, `unanimous` takes over for
a score with known bounds; without bounds no interval is given.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import optimize, stats

Floats = NDArray[np.float64]
Method = Literal["wilson", "tango", "bca", "percentile", "unanimous"]

# The intervals of counts are kept: a grid of a few documents a cell has thousands of cells, and few counts.

# Elements of one block of resamples: 8 MiB of float64 at a time, whatever the number of documents.
_BATCH_ELEMENTS = 1_000_000


class Interval(BaseModel):
    """A two-sided confidence interval, in the metric's own scale, and how it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    method: Method

    def contains(self, value: float) -> bool:
        """Whether `value` lies inside, ends included."""
        return self.low <= value <= self.high


@functools.lru_cache(maxsize=4096)
def wilson(successes: int, n: int, confidence: float) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927, JASA 22:209).

    Never leaves [0, 1] and never collapses at 0 or n successes.

    Raises:
        ValueError: `n` is not positive or `successes` is not within 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got successes={successes}, n={n}")
    found = stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return Interval(low=float(found.low), high=float(found.high), method="wilson")


@functools.lru_cache(maxsize=4096)
def tango(b: int, c: int, n: int, confidence: float) -> Interval:
    """Tango's score interval for the difference of two paired proportions (Tango 1998, Stat. Med. 17:891).

    The interval holds every difference d that McNemar's score statistic, with the cell probability estimated
    by maximum likelihood under d, doesn't reject. With no discordant pair it is +-z^2/(n + z^2), not a point.
    Recommended for small and medium n by Fagerland, Lydersen & Laake (2014, Stat. Med. 33:2850).

    Args:
        b: Documents that only the candidate gets right.
        c: Documents that only the baseline gets right.
        n: All documents.
        confidence: Two-sided level, such as 0.95.

    Raises:
        ValueError: The counts are negative or exceed `n`.
    """
    if b < 0 or c < 0 or n < 1 or b + c > n:
        raise ValueError(f"expected b, c >= 0 and b + c <= n, got b={b}, c={c}, n={n}")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    estimate = (b - c) / n

    def excess(d: float) -> float:
        # Score statistic without its division: |numerator| - z * standard error, negative inside the
        # interval.
        quad_b = -b - c + (2 * n - b + c) * d
        quad_c = -c * d * (1 - d)
        c_prob = (math.sqrt(max(0.0, quad_b * quad_b - 8 * n * quad_c)) - quad_b) / (4 * n)
        variance = n * (2 * c_prob + d * (1 - d))
        return abs(b - c - n * d) - z * math.sqrt(max(0.0, variance))

    def end(limit: float) -> float:
        # At the estimate itself the excess is <= 0; at the limit the variance vanishes and it is >= 0.
        if excess(limit) <= 0:
            return limit
        inside = estimate + (limit - estimate) * 1e-12
        if excess(inside) >= 0:
            return estimate
        return float(optimize.brentq(excess, inside, limit, xtol=1e-13))

    return Interval(low=end(-1.0), high=end(1.0), method="tango")


def unanimous(value: float, n: int, confidence: float, bounds: tuple[float, float]) -> Interval:
    """An interval for a mean when all `n` documents gave the same `value`.

    With all n alike, the share of documents that would behave otherwise is at most q = 1 - (alpha/2)^(1/n)
    (the exact binomial bound of Clopper & Pearson 1934 at 0 of n; its 3/n is the "rule of three"). If that
    share sat at one of the bounds, the mean would move by q times the distance to it.

    Args:
        value: The common value.
        n: Number of documents.
        confidence: Two-sided level.
        bounds: The lowest and highest value that a document can give.
    """
    share = 1 - ((1 - confidence) / 2) ** (1 / n)
    low, high = bounds
    return Interval(
        low=value - share * (value - low), high=value + share * (high - value), method="unanimous"
    )


def bootstrap(
    values: Floats,
    confidence: float,
    *,
    resamples: int,
    rng: np.random.Generator,
    bounds: tuple[float, float] | None,
) -> Interval | None:
    """A bootstrap interval for the mean over documents.

    For a paired difference pass the per-document differences: resampling documents and taking the difference
    of the two means is the same as resampling the differences.

    BCa (Efron 1987, JASA 82:171); its percentile form where BCa's bias or acceleration isn't defined; where
    every document gave the same value, `unanimous` if the score has `bounds`, and None (nothing honest can be
    said) if not.

    Args:
        values: One value per document, [n].
        confidence: Two-sided level.
        resamples: Number of bootstrap resamples.
        rng: Source of the resamples.
        bounds: The lowest and highest value a document can give, if the metric has such.
    """
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        return None
    if np.ptp(values) == 0:
        return None if bounds is None else unanimous(float(values[0]), n, confidence, bounds)
    mean: Callable[..., Any] = np.mean
    with warnings.catch_warnings():
        # scipy warns when BCa is undefined; the result is checked just below instead.
        warnings.simplefilter("ignore")
        result = stats.bootstrap(
            (values,),
            mean,
            n_resamples=resamples,
            batch=max(1, _BATCH_ELEMENTS // n),
            vectorized=True,
            confidence_level=confidence,
            method="BCa",
            rng=rng,
        )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    if math.isfinite(low) and math.isfinite(high):
        return Interval(low=low, high=high, method="bca")
    tail = (1 - confidence) / 2
    low, high = (float(x) for x in np.quantile(result.bootstrap_distribution, [tail, 1 - tail]))
    return Interval(low=low, high=high, method="percentile")
