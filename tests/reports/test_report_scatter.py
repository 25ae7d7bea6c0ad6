"""Scores against costs: axes, intervals, colours that a model keeps."""

import pytest

from nsa_reports import CostPoint, scatter_of
from nsa_reports.scatter import figure


def made(*points, models=("nsa", "dense"), percent=True):
    return scatter_of("t", points, models=models, x_label="ms", y_label="score", percent=percent)


def point(model="nsa", cost=1.0, score=0.5, low=0.4, high=0.6):
    return CostPoint(model=model, cost=cost, score=score, low=low, high=high)


def test_costs_begin_at_nought_and_scores_have_their_interval():
    chart = made(point(), point("dense", 4.0, 0.9, 0.8, 0.95))
    nsa, dense = chart.dots
    assert chart.x_ticks[0].label == "0"
    assert chart.x_ticks[0].at == chart.left
    assert nsa.x - chart.left == pytest.approx((dense.x - chart.left) / 4, abs=0.2)
    assert nsa.low > nsa.y > nsa.high > dense.low, "svg's heights grow downwards"
    assert nsa.label == "1, 50.0 % [40.0, 60.0]"
    assert "dense 4, 90.0 % [80.0, 95.0]" in chart.title


def test_costs_far_apart_stand_on_a_logarithmic_axis():
    chart = made(point(cost=0.01), point(cost=1.0), point(cost=100.0))
    first, second, third = (dot.x for dot in chart.dots)
    assert second - first == pytest.approx(third - second, abs=0.2)
    labels = " ".join(tick.label for tick in chart.x_ticks)
    assert labels == "0.01 0.02 0.05 0.1 0.2 0.5 1 2 5 10 20 50 100"
    wide = made(point(cost=1e-6), point(cost=1e3))
    assert [tick.label for tick in wide.x_ticks][-2:] == ["100", "1,000"]


def test_a_model_keeps_its_colour_where_others_are_missing():
    assert [dot.style for dot in made(point("dense")).dots] == [1]


def test_an_unknown_interval_is_not_drawn():
    [dot] = made(point(low=None, high=float("nan"))).dots
    assert (dot.low, dot.high) == (None, None)


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
def test_costs_that_are_none_are_refused(cost):
    with pytest.raises(ValueError, match="finite and from 0 on"):
        made(point(cost=cost))
    with pytest.raises(ValueError, match="t: costs"):
        made()


@pytest.mark.parametrize("costs", [(0.0, 0.0), (0.0, 5.0), (3.0, 3.0)])
def test_equal_costs_and_nought_have_a_place(costs):
    chart = made(*(point(cost=cost) for cost in costs))
    assert all(chart.left <= dot.x <= chart.right for dot in chart.dots)


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (1.5, "1.5"), (123.4, "123"), (1234.0, "1,230"), (0, "0")]
)
def test_figures_have_three_digits(value, text):
    assert figure(value) == text
