"""Scores against costs: axes, intervals, colours that a model keeps."""

import pytest

from nsa_reports import CostPoint, keys_of, scatter_of
from nsa_reports.charts import STYLES, colour_and_dashes, style_class
from nsa_reports.scatter import figure, whiskers


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
    assert [dot.key.style for dot in made(point("dense")).dots] == [1]


def test_more_models_than_colours_are_numbered_by_their_place():
    few, many = ([f"m{i}" for i in range(count)] for count in (6, 7))
    assert {key.number for key in keys_of(few)} == {""}
    assert [key.number for key in keys_of(many)] == ["1", "2", "3", "4", "5", "6", "7"]
    [dot] = made(point("m6"), models=many).dots
    assert (dot.key.number, dot.key.style) == ("7", 6)


def test_lines_differ_in_colour_or_dashes_and_the_first_six_in_both():
    looks = [colour_and_dashes(style) for style in range(STYLES)]
    assert len(set(looks)) == STYLES == 36
    assert looks[:6] == [(i, i) for i in range(6)]
    assert (style_class(1), style_class(6)) == ("s1", "s0 d1")


def test_a_chart_of_many_points_is_not_read_out_point_by_point():
    few, many = (made(*[point(cost=1.0 + i) for i in range(count)]).title for count in (12, 13))
    assert few.count("50.0 %") == 12
    assert many == "t: 13 models"


def test_intervals_of_a_style_are_one_path():
    assert whiskers([(0, 1.0, 9.0, 2.5), (1, 2.0, None, None), (0, 3.0, 8.0, 4.0)]) == (
        (0, "M1 9V2.5M3 8V4"),
    )


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
