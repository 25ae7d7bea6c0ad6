"""The Pareto front, and values between measured points."""

import itertools

import pytest

from nsa_eval.budgets.front import Between, between, pareto


def plainly(points, better):
    """Nobody costs as little and scores as well, one of the two being better."""
    return {
        i
        for i, (cost, score) in enumerate(points)
        if not any(
            other_cost <= cost and better * other >= better * score and (other_cost, other) != (cost, score)
            for other_cost, other in points
        )
    }


@pytest.mark.parametrize("higher", [True, False])
def test_the_front_is_what_no_other_point_beats(higher):
    for points in itertools.product(itertools.product((1.0, 2.0), (0.1, 0.2, 0.3)), repeat=3):
        assert set(pareto(points, higher_is_better=higher)) == plainly(points, 1 if higher else -1), points


def test_the_front_rises_with_cost():
    points = [(5.0, 0.9), (1.0, 0.2), (3.0, 0.9), (2.0, 0.1), (4.0, 0.95)]
    assert pareto(points) == [1, 2, 4]


def test_scores_between_points_are_on_a_straight_line_and_marked():
    curve = [(4.0, 0.8), (1.0, 0.2), (2.0, 0.4)]
    assert between(curve, 3.0) == Between(pytest.approx(0.6), interpolated=True)
    assert between(curve, 2.0) == Between(0.4, interpolated=False)


@pytest.mark.parametrize("cost", [0.9, 4.1])
def test_nothing_is_said_beyond_the_points(cost):
    assert between([(1.0, 0.2), (4.0, 0.8)], cost) is None


def test_points_of_one_cost_are_no_line():
    assert between([(1.0, 0.2), (1.0, 0.4)], 1.0) == Between(pytest.approx(0.3), interpolated=False)
    assert between([(1.0, 0.2), (1.0, 0.4)], 1.1) is None
