"""The minimum detectable effect: the smallest true difference that the test would have found with 80 % power.

A row that finds nothing says little until it is known what it could have found. Both forms take the noise
from the data (how often, or how far, the models differ on a document) and ask for the mean difference.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

POWER = 0.8
"""Power at which the minimum detectable effect is stated: the usual convention (Cohen 1988)."""


def mcnemar_power(difference: float, discordance: float, n: int, alpha: float) -> float:
    """Exact power of the exact McNemar test (Schork & Williams 1980, Commun. Stat. B 9:349).

    The number of discordant documents is D ~ Binomial(n, discordance); of these, those in the candidate's
    favour are Binomial(D, (1 + difference / discordance) / 2), and the test rejects in the tails where its p
    is <= alpha.

    Args:
        difference: True difference of the two accuracies, 0..discordance.
        discordance: True share of documents on which the models differ, 0..1.
        n: Number of documents.
        alpha: Level of the test.
    """
    if discordance <= 0:
        return 0.0
    counts = np.arange(n + 1)
    weights = stats.binom.pmf(counts, n, discordance)
    likely = weights > 1e-12
    counts, weights = counts[likely], weights[likely]
    # Largest k with P(X <= k) <= alpha / 2 under X ~ Binomial(D, 1/2); -1 where even k = 0 is too likely.
    k = stats.binom.ppf(alpha / 2, counts, 0.5)
    # ppf gives the first k at or above the level; step back unless it sits exactly on it.
    k = np.where(stats.binom.cdf(k, counts, 0.5) <= alpha / 2 * (1 + 1e-12), k, k - 1)
    toward = min(1.0, (1 + difference / discordance) / 2)
    # Reject when at most k documents go to either model; binom.cdf(-1) is 0.
    rejected = stats.binom.cdf(k, counts, 1 - toward) + stats.binom.cdf(k, counts, toward)
    return float(np.sum(weights * np.minimum(1.0, rejected)))


def mde_proportions(discordant: int, n: int, alpha: float, power: float = POWER) -> float | None:
    """Smallest difference of two paired accuracies that exact McNemar finds with `power`.

    The discordance is taken as observed, and no lower than the difference itself: a difference of 10 points
    needs at least 10 % of documents to differ.

    Args:
        discordant: Documents on which the two models differ (b + c).
        n: All documents.
        alpha: Level of the test.
        power: Wanted power.

    Returns:
        The difference in 0..1, or None if not even a difference of 1 would be found (too few documents).
    """
    observed = discordant / n

    def shortfall(difference: float) -> float:
        return mcnemar_power(difference, max(observed, difference), n, alpha) - power

    if shortfall(1.0) < 0:
        return None
    return float(optimize.brentq(shortfall, 0.0, 1.0, xtol=1e-5))


def mde_means(differences: NDArray[np.float64], alpha: float, power: float = POWER) -> float | None:
    """Smallest mean difference that a paired test of scores finds with `power`.

    (z_{1 - alpha/2} + z_power) * s / sqrt(n), s the standard deviation of the per-document differences; the
    normal approximation of Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640), section 5.

    Returns:
        The difference in the metric's own scale, or None where the data can't say: no spread to go by, or so
        few documents that even differences all of one sign would give a p above alpha (2^(1-n) > alpha).
    """
    n = len(differences)
    if n < 2 or 2.0 ** (1 - n) > alpha:
        return None
    spread = float(np.std(differences, ddof=1))
    if spread == 0 or not math.isfinite(spread):
        return None
    return float((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) * spread / math.sqrt(n))
