"""Sweeps over a cost in pixels: lines, bands, fronts."""

import pytest

from nsa_reports import CostCurve, Spot, frontier_of, keys_of

POINTS = ((10.0, 0.5), (40.0, 0.9), (20.0, 0.8))


def chart(points=POINTS, levels=(), front=(), **changes):
    spots = tuple(
        Spot(name=f"budget {cost:g}", cost=cost, score=score, low=score - 0.1, high=score + 0.1)
        for cost, score in points
    )
    given = {"x_label": "cells", "y_label": "score", "percent": True, **changes}
    curves = [CostCurve(key=keys_of(["a", "quest"])[1], spots=spots)]
    return frontier_of("task", curves, levels, front=front, **given)


def test_a_line_runs_in_the_order_of_its_sweep():
    [line] = chart().lines
    xs = [float(pair.split(",")[0]) for pair in line.points.split()]
    assert xs == [mark.x for mark in line.marks]
    assert xs[0] < xs[2] < xs[1]
    assert [mark.label for mark in line.marks] == [
        "budget 10 at 10: 50.0 % [40.0, 60.0]",
        "budget 40 at 40: 90.0 % [80.0, 100.0]",
        "budget 20 at 20: 80.0 % [70.0, 90.0]",
    ]
    assert line.key.style == 1


def test_everything_lies_between_the_axes():
    full = Spot(name="full", cost=100.0, score=0.95, low=0.85, high=0.99)
    found = chart(levels=[(full, True)], front=POINTS[:1])
    for mark in (*found.lines[0].marks, found.bands[0].mark):
        assert found.left <= mark.x <= found.right
        assert found.top <= mark.high <= mark.y <= mark.low <= found.bottom
    [band] = found.bands
    assert band.top < band.at < band.bottom
    assert "full 95.0 % [85.0, 99.0]" in found.title


def test_a_level_whose_cost_is_not_known_is_a_band_alone():
    full = Spot(name="full", cost=0.0, score=0.95)
    [band] = chart(levels=[(full, False)]).bands
    assert (band.mark, band.top, band.bottom) == (None, None, None)


def test_the_front_is_marked_and_drawn_in_steps():
    found = chart(front=[POINTS[0], POINTS[1]])
    assert [mark.front for mark in found.lines[0].marks] == [True, True, False]
    steps = [tuple(map(float, pair.split(","))) for pair in found.front.split()]
    assert [steps[1][0], steps[1][1]] == [steps[2][0], steps[0][1]]
    assert found.ringed
    alone = chart(front=POINTS[:1])
    assert (alone.front, alone.ringed, chart().ringed) == ("", True, False)


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
def test_costs_are_numbers_from_0_on(cost):
    with pytest.raises(ValueError, match="finite and from 0 on"):
        chart(points=((cost, 0.5),))
