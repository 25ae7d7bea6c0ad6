"""Paired tests, and Holm's correction of their p-values."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Elements of one block of sign flips (64 MiB of float64): scipy loops over documents once a block, so a few
# large ones.
_BATCH_ELEMENTS = 8_000_000


def mcnemar(b: int, c: int) -> float:
    """Exact McNemar test (McNemar 1947, Psychometrika 12:153): two-sided p of `b` against `c`.

    Only documents on which the two models differ carry information; with no real difference each of them is
    equally likely to fall either way, so b is Binomial(b + c, 1/2). Without such documents p is 1.

    Raises:
        ValueError: A count is negative.
    """
    if b < 0 or c < 0:
        raise ValueError(f"expected counts >= 0, got b={b}, c={c}")
    return 1.0 if b + c == 0 else float(stats.binomtest(b, b + c, 0.5).pvalue)


def sign_flip(differences: NDArray[np.float64], *, resamples: int, rng: np.random.Generator) -> float:
    """Paired permutation test of a mean difference of 0: two-sided p.

    With no real difference the two models' scores on a document could be swapped, which flips the sign of its
    difference. All 2^m flips are tried where that is at most `resamples` (m: the differences that are not 0,
    the others carry no information), else `resamples` random ones, and p = (k + 1) / (resamples + 1) per
    side.

    Args:
        differences: Candidate minus baseline per document, [n].
        resamples: Most flips to try.
        rng: Source of the random flips.
    """
    moved = differences[differences != 0]
    if len(moved) < 2:
        # None, or one whose two signs are equally far from 0 (scipy wants two observations).
        return 1.0
    result = stats.permutation_test(
        (moved,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH_ELEMENTS // len(moved)),
        alternative="two-sided",
        rng=rng,
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979, Scand. J. Statist. 6:65), in the order given.

    The k-th smallest of m p-values (k from 0) is multiplied by m - k, and never falls below an earlier one.
    Comparing the results with alpha keeps the chance of any false finding among all m below alpha, however
    the tests depend on each other. (scipy 1.17 has false-discovery-rate control, but not this.)

    Raises:
        ValueError: A value is not within 0..1.
    """
    if any(not 0 <= p <= 1 or math.isnan(p) for p in p_values):
        raise ValueError(f"expected p-values within 0..1, got {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
