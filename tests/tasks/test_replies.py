"""Several replies to a problem: pass@k and maj@k against their definitions, by enumeration."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from nsa_tasks.replies import (
    RIGHT,
    SILENT,
    bootstrap,
    majority_at_k,
    pass_at_k,
    problems_error,
    replies_error,
)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_reply(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_by_the_product_of_the_paper():
    # 1 - prod_{i=n-c+1..n} (1 - k/i) of Chen et al., where k <= n - c.
    for n, c, k in ((16, 3, 4), (64, 10, 32), (200, 1, 100)):
        product = math.prod(1 - k / i for i in range(n - c + 1, n + 1))
        assert pass_at_k(n, c, k) == pytest.approx(1 - product)
    assert pass_at_k(16, 13, 4) == 1.0  # three wrong ones can't fill four places


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 2), (4, -1, 2)])
def test_more_replies_than_there_are_cannot_be_taken(n, c, k):
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(n, c, k)


def by_enumeration(votes, k):
    """The definition: the mean over all subsets, ties shared."""
    won = []
    for subset in itertools.combinations(votes, k):
        counts = Counter(vote for vote in subset if vote != SILENT)
        most = max(counts.values(), default=0)
        winners = [vote for vote, count in counts.items() if count == most]
        won.append(1 / len(winners) if RIGHT in winners else 0.0)
    return sum(won) / len(won)


VOTES = [
    [RIGHT],
    [SILENT],
    [1],
    [RIGHT, 1],
    [SILENT, SILENT, RIGHT],
    [RIGHT, RIGHT, 1, 1, 2],
    [RIGHT, 1, 2, 3, 4, SILENT],
    [1, 1, 1, RIGHT, RIGHT, RIGHT, SILENT, SILENT],
    [RIGHT, RIGHT, 1, 1, 2, 2, 3, SILENT],
    [1, 1, 2, 2, SILENT],
]


@pytest.mark.parametrize("votes", VOTES, ids=str)
def test_maj_at_k_is_the_mean_over_all_subsets(votes):
    for k in range(1, len(votes) + 1):
        assert majority_at_k(votes, k) == pytest.approx(by_enumeration(votes, k)), k


def test_maj_at_k_of_random_votes_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(0)
    for _ in range(40):
        votes = rng.integers(-1, 4, rng.integers(1, 10)).tolist()
        k = int(rng.integers(1, len(votes) + 1))
        assert majority_at_k(votes, k) == pytest.approx(by_enumeration(votes, k)), (votes, k)


def test_the_order_of_replies_decides_no_tie():
    assert majority_at_k([RIGHT, 1, 1, RIGHT], 4) == majority_at_k([1, 1, RIGHT, RIGHT], 4) == 0.5


def test_one_voice_against_silence_wins():
    assert majority_at_k([SILENT] * 15 + [RIGHT], 16) == 1.0
    assert majority_at_k([SILENT] * 16, 16) == 0.0


def test_many_replies_stay_exact():
    # All answers apart: the right one ties with the 63 others, or with the 31 others of a half.
    votes = list(range(64))
    assert majority_at_k(votes, 64) == pytest.approx(1 / 64)
    assert majority_at_k(votes, 32) == pytest.approx(0.5 * 1 / 32)


def test_errors_by_hand():
    # Means 1, 0.5, 0 of 2 replies each: variance 0.25, SE = 0.5 / sqrt(3); replies: sqrt(0.25 / 1) / 3.
    assert problems_error([1, 0.5, 0]) == pytest.approx(0.5 / math.sqrt(3))
    assert replies_error([2, 1, 0], [2, 2, 2]) == pytest.approx(0.5 / 3)
    assert math.isnan(problems_error([1.0]))
    assert math.isnan(replies_error([1], [1]))


def test_replies_are_not_pooled_as_if_they_were_independent():
    # 30 problems, right always or never: 480 replies say no more than 30 do.
    means = [1.0] * 15 + [0.0] * 15
    assert problems_error(means) == pytest.approx(math.sqrt(0.25 / 29))
    assert problems_error(means) > 3 * math.sqrt(0.25 / 480)


def test_the_bootstrap_holds_both_sources_of_variance():
    rng = np.random.default_rng(1)
    steady = [[RIGHT] * 8] * 10 + [[1] * 8] * 10  # varies between problems alone
    wavering = [[RIGHT, 1] * 4] * 20  # within them alone

    def mean(votes):
        return votes.count(RIGHT) / len(votes)

    for problems, error in ((steady, math.sqrt(0.25 / 20)), (wavering, math.sqrt(0.25 / 8 / 20))):
        low, high = bootstrap(problems, mean, confidence=0.95, resamples=4000, rng=rng)
        assert low < 0.5 < high
        assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.12)
