"""What several replies to a document say: pass@k, maj@k, and how sure their means are.

N documents ("problems") have n replies each. A reply is known by its vote, a number for the answer that it
gives: `RIGHT` for the right one, 1, 2, ... for the others, `SILENT` for none. A problem's score is exact and
takes no draw: the expectation over the k of its n replies that could have been taken.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

RIGHT = 0
"""The vote of a reply with the right answer."""
SILENT = -1
"""The vote of a reply without an answer: it is never counted."""
_POOL = 64
"""Draws of a problem's replies that a bootstrap takes its own from: an error of 1/sqrt(64) of the spread
between them in one draw of one problem, which the mean over problems and resamples makes invisible."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k replies is right, without bias (Chen et al. 2021, arXiv 2107.03374).

    1 - C(n-c, k) / C(n, k): the share of all k-subsets of the n replies that hold a right one.

    Args:
        n: Replies.
        c: Right ones among them.
        k: Replies that may be taken, 1..n.

    Raises:
        ValueError: Not 0 <= c <= n and 1 <= k <= n.
    """
    _check(n, k)
    if not 0 <= c <= n:
        raise ValueError(f"expected 0 <= c <= n, got c={c}, n={n}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_at_k(votes: Sequence[int], k: int) -> float:
    """The chance that the most frequent answer among k replies is the right one.

    Exactly the mean over all k-subsets of the replies. A silent reply takes a place in the subset and has no
    vote; where all are silent, the majority is wrong. Of answers with equally many votes each wins as often
    as the others: where m tie the right one counts 1/m, whatever order the replies came in.

    Args:
        votes: Of each reply, [n].
        k: Replies that vote, 1..n.

    Raises:
        ValueError: Not 1 <= k <= n.
    """
    _check(len(votes), k)
    counts = Counter(votes)
    own, silent = counts.pop(RIGHT, 0), counts.pop(SILENT, 0)
    return _majority(own, tuple(sorted(counts.values())), silent, k)


@functools.lru_cache(maxsize=1 << 16)
def _majority(own: int, others: tuple[int, ...], silent: int, k: int) -> float:
    whole = math.comb(own + sum(others) + silent, k)
    won = 0.0
    for most in range(1, min(own, k) + 1):
        # ways[ties][taken]: ways to take `taken` replies with other answers, none of which has more than
        # `most` votes and `ties` of which have exactly so many.
        ways = {0: {0: 1}}
        for size in others:
            ways = _with_answer(ways, size, most, k - most)
        for ties, by_taken in ways.items():
            subsets = sum(
                count * math.comb(silent, k - most - taken) for taken, count in by_taken.items()
            )  # comb is 0 where more are left than there are silent ones
            won += math.comb(own, most) * subsets / (whole * (ties + 1))
    return won


def _with_answer(
    ways: dict[int, dict[int, int]], size: int, most: int, room: int
) -> dict[int, dict[int, int]]:
    """Extend the ways by the replies of one more answer, which `size` of them give."""
    found: dict[int, dict[int, int]] = {}
    for ties, by_taken in ways.items():
        for taken, count in by_taken.items():
            for more in range(min(size, most, room - taken) + 1):
                into = found.setdefault(ties + (more == most), {})
                into[taken + more] = into.get(taken + more, 0) + count * math.comb(size, more)
    return found


def problems_error(means: Sequence[float]) -> float:
    """Standard error of avg@n over problems and replies, for problems that are a sample of others like them.

    SE^2 = sum (x_i - x)^2 / (N (N - 1)) with x_i a problem's mean over its replies: the clustered form, which
    holds the variance between replies too (Miller 2024, arXiv 2411.00640). N*n replies are never pooled.

    Args:
        means: x_i, [N].

    Returns:
        NaN for fewer than two problems.
    """
    if len(means) < 2:
        return math.nan
    return float(np.std(np.asarray(means, dtype=np.float64), ddof=1) / math.sqrt(len(means)))


def replies_error(right: Sequence[int], replies: Sequence[int]) -> float:
    """Standard error of avg@n over replies alone, for these very problems.

    SE^2 = sum x_i (1 - x_i) / (n_i - 1) / N^2: how much the score would move if the same problems were asked
    again.

    Args:
        right: Right replies of each problem, [N].
        replies: Replies of each problem, [N].

    Returns:
        NaN without problems, or where one has a single reply.
    """
    if not right or min(replies) < 2:
        return math.nan
    means = [c / n for c, n in zip(right, replies, strict=True)]
    variance = sum(x * (1 - x) / (n - 1) for x, n in zip(means, replies, strict=True))
    return math.sqrt(variance) / len(means)


def bootstrap(
    problems: Sequence[Sequence[int]],
    score: Callable[[Sequence[int]], float],
    *,
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Percentile interval of a mean over problems: problems are drawn anew, and the replies within each.

    Args:
        problems: The votes of each problem's replies, [N][n].
        score: A problem's score from votes.
        confidence: Two-sided level, such as 0.95.
        resamples: Bootstrap samples.
        rng: Source of the draws.

    Returns:
        Its ends.
    """
    pool = np.array(
        [
            [score([votes[i] for i in draw]) for draw in rng.integers(0, len(votes), (_POOL, len(votes)))]
            for votes in problems
        ]
    )
    chosen = rng.integers(0, len(problems), (resamples, len(problems)))
    means = pool[chosen, rng.integers(0, _POOL, chosen.shape)].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"expected 1 <= k <= n, got k={k}, n={n}")
