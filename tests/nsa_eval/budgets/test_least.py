"""The least budget that is not worse than full attention, within a margin."""

import numpy as np
import pytest

from nsa_eval.budgets.least import documents_needed, least_not_worse, margin_of
from nsa_eval.comparison import Estimate, Interval, Row
from nsa_eval.comparison.intervals import tango


def row(label, low, high, *, n=400, higher=True, unit="points", mean=0.9, binary=True):
    interval = None if low is None else Interval(low=low, high=high, method="tango")
    estimate = Estimate(mean=mean, interval=None)
    return Row(
        task="t", metric="score", filter="none", length=None, baseline="full", candidate=label, n=n,
        samples=n, binary=binary,
        unit=unit, higher_is_better=higher, baseline_score=estimate, candidate_score=estimate,
        difference=0.0 if low is None else (low + high) / 2, interval=interval, bootstrap=None, wins=0,
        losses=0, test="mcnemar", p=1.0, p_adjusted=1.0, family=1, minimum_detectable=None,
        verdict="not distinguishable",
    )  # fmt: skip


def test_the_least_of_those_that_pass_in_a_row_is_found():
    rows = [row("512", -0.01, 0.01), row("256", -0.019, 0.0), row("128", -0.2, -0.1)]
    found = least_not_worse(rows, margin=0.02, confidence=0.95)
    assert (found.outcome, found.found.label) == ("found", "256")
    assert [trial.not_worse for trial in found.trials] == [True, True, False]


def test_nothing_behind_the_first_failure_counts():
    rows = [row("512", -0.01, 0.01), row("256", -0.03, 0.0), row("128", -0.01, 0.01)]
    assert least_not_worse(rows, margin=0.02, confidence=0.95).found.label == "512"
    assert least_not_worse(rows[1:], margin=0.02, confidence=0.95).outcome == "none"


def test_an_interval_that_reaches_the_margin_is_not_enough():
    assert least_not_worse([row("8", -0.02, 0.1)], margin=0.02, confidence=0.95).outcome == "none"


def test_not_to_be_told_apart_is_not_to_be_as_good():
    assert least_not_worse([row("8", -0.3, 0.3)], margin=0.02, confidence=0.95).outcome == "none"


def test_lower_scores_are_better_where_the_metric_says_so():
    rows = [row("8", -0.5, 0.015, higher=False), row("4", -0.5, 0.03, higher=False)]
    assert least_not_worse(rows, margin=0.02, confidence=0.95).found.label == "8"


def test_too_few_documents_are_said_to_be_too_few():
    found = least_not_worse([row("8", -0.07, 0.07, n=50)], margin=0.02, confidence=0.95)
    assert (found.outcome, found.needed) == ("too few", 189)
    assert least_not_worse([row("8", None, None)], margin=0.02, confidence=0.95).outcome == "unknown"


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_documents_needed_are_the_fewest_with_which_agreement_shows_it(margin, confidence):
    n = documents_needed(margin, confidence, binary=True)
    assert tango(0, 0, n, confidence).low > -margin >= tango(0, 0, n - 1, confidence).low
    other = documents_needed(margin, confidence, binary=False)
    share = 1 - ((1 - confidence) / 2) ** (1 / other)
    assert share < margin <= 1 - ((1 - confidence) / 2) ** (1 / (other - 1))


def test_the_test_keeps_its_level_when_a_model_is_worse_by_the_margin():
    """Simulated at the border of the hypothesis: at most 2.5 % are called not worse, but for the noise."""
    rng = np.random.default_rng(0)
    n, margin, called, rounds = 300, 0.1, 0, 400
    for _ in range(rounds):
        # P(only full right) - P(only candidate right) = margin.
        kind = rng.random(n)
        wins, losses = int((kind < 0.05).sum()), int(((kind >= 0.05) & (kind < 0.2)).sum())
        ends = tango(wins, losses, n, 0.95)
        found = least_not_worse([row("8", ends.low, ends.high, n=n)], margin=margin, confidence=0.95)
        called += found.outcome == "found"
    assert called / rounds <= 0.05


def test_margins_are_points_or_percent_of_full_attention():
    assert margin_of(row("8", -0.1, 0.1), 2.0) == 0.02
    assert margin_of(row("8", -0.1, 0.1, unit="raw", mean=12.0), 2.0) == pytest.approx(0.24)
    with pytest.raises(ValueError, match="above 0"):
        least_not_worse([row("8", -0.1, 0.1)], margin=0.0, confidence=0.95)
