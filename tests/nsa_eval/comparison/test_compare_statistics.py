"""Golden values of the statistics, each worked out by hand in its comment."""

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest

from nsa_eval.comparison._power import mcnemar_power, mde_means, mde_proportions
from nsa_eval.comparison._significance import holm, mcnemar, sign_flip
from nsa_eval.comparison.intervals import bootstrap, tango, unanimous, wilson

Z = NormalDist().inv_cdf(0.975)  # 1.959964


def test_mcnemar_counts_the_two_binomial_tails() -> None:
    # b = 8, c = 2: P(X <= 2 | 10, 1/2) = (1 + 10 + 45) / 1024 = 56 / 1024; both tails: 112 / 1024.
    assert mcnemar(8, 2) == pytest.approx(112 / 1024)
    assert mcnemar(2, 8) == pytest.approx(112 / 1024)


def test_mcnemar_of_six_to_nothing_is_the_first_below_5_percent() -> None:
    # 2 * (1/2)^5 = 0.0625 and 2 * (1/2)^6 = 0.03125.
    assert mcnemar(5, 0) == pytest.approx(0.0625)
    assert mcnemar(6, 0) == pytest.approx(0.03125)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 3)])
def test_mcnemar_without_any_lean_is_one(b: int, c: int) -> None:
    assert mcnemar(b, c) == 1.0


def test_mcnemar_rejects_negative_counts() -> None:
    with pytest.raises(ValueError, match="b=-1"):
        mcnemar(-1, 2)


def test_holm_steps_down_and_never_falls() -> None:
    # Sorted: 0.005*4 = 0.02; 0.01*3 = 0.03; 0.03*2 = 0.06; 0.04*1 = 0.04, raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_caps_at_one_and_takes_nothing() -> None:
    # 0.5 * 3 = 1.5 -> 1, and the others can't be below it.
    assert holm([0.9, 0.5, 0.6]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match=r"within 0\.\.1"):
        holm([0.5, math.nan])


def test_wilson_of_eight_in_ten() -> None:
    # z^2 = 3.841459; centre (0.8 + z^2/20) / (1 + z^2/10) = 0.992073 / 1.384146 = 0.716740;
    # half = z * sqrt(0.8 * 0.2 / 10 + z^2 / 400) / 1.384146 = 1.959964 * 0.160011 / 1.384146 = 0.226577.
    interval = wilson(8, 10, 0.95)
    assert interval.low == pytest.approx(0.716740 - 0.226577, abs=2e-6)
    assert interval.high == pytest.approx(0.716740 + 0.226577, abs=2e-6)


def test_wilson_of_all_right_reaches_one_but_has_a_width() -> None:
    # p = 1: low = (1 + z^2/2n - z*sqrt(z^2/4n^2)) / (1 + z^2/n) = n / (n + z^2) = 20 / 23.841459.
    interval = wilson(20, 20, 0.95)
    assert interval.low == pytest.approx(20 / (20 + Z * Z))
    assert interval.high == pytest.approx(1.0)


def test_tango_without_discordant_pairs_is_not_a_point() -> None:
    # The score equation reduces to n*d = z^2*(1 - d): d = z^2 / (n + z^2) = 3.841459 / 23.841459 = 0.161125.
    interval = tango(0, 0, 20, 0.95)
    assert interval.high == pytest.approx(Z * Z / (20 + Z * Z))
    assert interval.low == pytest.approx(-interval.high)


def test_tango_with_every_pair_won_by_one_side() -> None:
    # c = 0, b = n: (1 - d) / (1 + d) = z^2 / n, so d = (n - z^2) / (n + z^2).
    interval = tango(20, 0, 20, 0.95)
    assert interval.low == pytest.approx((20 - Z * Z) / (20 + Z * Z))
    assert interval.high == 1.0


def test_tango_on_published_data() -> None:
    # Bentur et al. 2009, airway hyper-responsiveness, 21 children, b = 1, c = 7: Fagerland, Lydersen & Laake
    # (2014, Stat. Med. 33:2850) give -0.517 to -0.026.
    interval = tango(1, 7, 21, 0.95)
    assert (round(interval.low, 3), round(interval.high, 3)) == (-0.517, -0.026)


def test_tango_agrees_with_the_score_test_at_zero() -> None:
    # At d = 0 the statistic is McNemar's (b - c) / sqrt(b + c): an end lies at 0 when that is z.
    # b = 12, c = 4: 8 / 4 = 2 > z, so 0 lies outside; b = 11, c = 4: 7 / 3.873 = 1.807 < z, inside.
    assert not tango(12, 4, 100, 0.95).contains(0)
    assert tango(11, 4, 100, 0.95).contains(0)


def test_unanimous_is_the_binomial_bound_times_the_distance() -> None:
    # share = 1 - 0.025^(1/20) = 1 - exp(-3.688879 / 20) = 0.168434; from 0 to +-1 that is the end itself,
    # and from 0.5 in 0..1 half of it.
    zero = unanimous(0.0, 20, 0.95, (-1.0, 1.0))
    assert (zero.low, zero.high) == pytest.approx((-0.168434, 0.168434), abs=1e-6)
    half = unanimous(0.5, 20, 0.95, (0.0, 1.0))
    assert (half.low, half.high) == pytest.approx((0.5 - 0.084217, 0.5 + 0.084217), abs=1e-6)


def test_bootstrap_of_equal_values_is_honest() -> None:
    same = np.zeros(20)
    rng = np.random.default_rng(0)
    bounded = bootstrap(same, 0.95, resamples=200, rng=rng, bounds=(-1.0, 1.0))
    assert bounded is not None
    assert bounded.method == "unanimous"
    assert bounded.high > 0.1
    assert bootstrap(same, 0.95, resamples=200, rng=rng, bounds=None) is None


def test_bootstrap_stays_near_the_normal_interval_for_many_documents() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    interval = bootstrap(values, 0.95, resamples=4000, rng=np.random.default_rng(0), bounds=None)
    half = Z * values.std(ddof=1) / 20
    assert interval is not None
    assert interval.method == "bca"
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.01
    )


def test_sign_flips_of_few_documents_are_all_tried() -> None:
    # Differences 1, 2, 3: of the 8 sign patterns only +++ reaches the sum 6, so one side has 1/8, both 2/8.
    rng = np.random.default_rng(0)
    assert sign_flip(np.array([1.0, 2.0, 3.0]), resamples=1000, rng=rng) == pytest.approx(0.25)
    # Documents without a difference change nothing.
    padded = np.array([1.0, 0.0, 2.0, 3.0, 0.0])
    assert sign_flip(padded, resamples=1000, rng=rng) == pytest.approx(0.25)


def test_sign_flips_of_no_difference() -> None:
    assert sign_flip(np.zeros(5), resamples=100, rng=np.random.default_rng(0)) == 1.0


def test_power_needs_six_discordant_documents() -> None:
    # n = 6, every discordant document won: rejects only when all 6 are discordant (p = 0.03125): 0.9^6.
    assert mcnemar_power(0.9, 0.9, 6, 0.05) == pytest.approx(0.9**6)
    # n = 5 can't reach 0.05 (best p is 0.0625).
    assert mcnemar_power(1.0, 1.0, 5, 0.05) == 0.0


def test_power_without_a_difference_is_the_size_of_the_test() -> None:
    # n = 10, all discordant: rejects at X <= 1 or X >= 9 (p = 22/1024): size 2 * (1 + 10) / 1024.
    assert mcnemar_power(0.0, 1.0, 10, 0.05) == pytest.approx(22 / 1024)


def test_detectable_difference_of_six_documents() -> None:
    # d^6 = 0.8: d = 0.8^(1/6) = 0.963492.
    assert mde_proportions(0, 6, 0.05) == pytest.approx(0.8 ** (1 / 6), abs=1e-4)
    assert mde_proportions(2, 5, 0.05) is None


def test_detectable_difference_approaches_the_large_sample_formula() -> None:
    # Connor 1987: n = (z*sqrt(psi) + z_power*sqrt(psi - d^2))^2 / d^2. For psi = 0.2, n = 2000, d = 0.028:
    # (1.959964 * 0.447214 + 0.841621 * sqrt(0.2 - 0.000784))^2 / d^2 = (0.876523 + 0.375646)^2 / 0.000784
    # = 1.567927 / 0.000784 = 1999.9.
    assert mde_proportions(400, 2000, 0.05) == pytest.approx(0.028, rel=0.02)


def test_detectable_difference_shrinks_with_documents_and_grows_with_discordance() -> None:
    sizes = [mde_proportions(n // 10, n, 0.05) for n in (50, 200, 800)]
    assert all(a is not None and b is not None and a > b for a, b in pairwise(sizes))
    noisy, quiet = mde_proportions(100, 200, 0.05), mde_proportions(10, 200, 0.05)
    assert noisy is not None
    assert quiet is not None
    assert noisy > quiet


def test_detectable_mean_difference() -> None:
    # s of (-1, +1) repeated 50 times: sqrt(100 / 99) = 1.005038;
    # (1.959964 + 0.841621) * 1.005038 / sqrt(100) = 0.281570.
    values = np.array([-1.0, 1.0] * 50)
    assert mde_means(values, 0.05) == pytest.approx(0.281570, abs=1e-6)


@pytest.mark.parametrize("values", [np.zeros(50), np.array([0.1, 0.2, 0.3, 0.1, 0.2])])
def test_detectable_mean_difference_is_unknown_without_spread_or_documents(values: np.ndarray) -> None:
    # Five documents: even +++++ has p = 2 / 32 = 0.0625.
    assert mde_means(values, 0.05) is None


def test_intervals_hold_the_true_difference_as_often_as_they_say() -> None:
    # 40 documents, candidate right on 80 %, baseline on 70 %, right together on 60 %: difference 0.1.
    rng = np.random.default_rng(7)
    runs = 400
    draws = rng.multinomial(40, [0.6, 0.2, 0.1, 0.1], size=runs)
    held = sum(tango(int(b), int(c), 40, 0.95).contains(0.1) for _, b, c, _ in draws)
    # Binomial(400, 0.95) has standard deviation 4.4: 95 % +- 4 of them.
    assert 362 <= held <= 398
    covered = 0
    for _ in range(200):
        values = rng.gamma(2.0, 1.0, 30) - rng.gamma(2.0, 0.75, 30)  # true mean difference 0.5
        interval = bootstrap(values, 0.95, resamples=1000, rng=rng, bounds=None)
        covered += interval is not None and interval.contains(0.5)
    assert 178 <= covered <= 199
