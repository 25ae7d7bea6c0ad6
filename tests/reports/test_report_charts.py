"""Curves over position: axes, bands, and what a hover says."""

import pytest

from nsa_reports import CurveGroup, CurvePoint, DifferenceCurve, ModelCurve, charts_of
from nsa_reports._format import MINUS
from nsa_reports.charts import HEIGHT, nice_ticks
from nsa_reports.curve_figures import curve_pictures


def points(*values, wide=0.5):
    return tuple(
        CurvePoint(end=1024 << step, value=value, low=value - wide, high=value + wide)
        for step, value in enumerate(values)
    )


def group(**changes):
    given = {
        "task": "ppl",
        "metric": "nll",
        "unit": "nats a token",
        "curves": (
            ModelCurve(model="nsa", points=points(3.0, 2.5, 2.25)),
            ModelCurve(model="dense", points=points(3.1, 2.5, 2.5)),
        ),
        "differences": (
            DifferenceCurve(candidate="nsa", baseline="dense", points=points(-0.1, 0.0, -0.25, wide=0.05)),
        ),
    }
    return CurveGroup(**{**given, **changes})


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (2.1, 3.4, [2.0, 2.5, 3.0, 3.5]),
        (-0.3, 0.05, [-0.3, -0.2, -0.1, 0.0, 0.1]),
        (0.0, 40.0, [0, 10, 20, 30, 40]),
        (7.0, 7.0, [3.5, 7.0, 10.5]),
        (0.0, 0.0, [-0.5, 0.0, 0.5]),
    ],
)
def test_ticks_are_round_and_hold_all_values(low, high, ticks):
    found = nice_ticks(low, high)
    assert found[0] <= low <= high <= found[-1] + 1e-12
    assert len(found) <= 8
    if len(ticks) == 5:
        assert found == pytest.approx(ticks)


def test_positions_are_logarithmic_and_values_upward():
    values, differences = charts_of(group())
    marks = values.lines[0].marks
    assert marks[1].x - marks[0].x == pytest.approx(marks[2].x - marks[1].x, abs=0.2)
    assert marks[0].y < marks[1].y < marks[2].y < HEIGHT  # smaller values stand lower
    assert [tick.label for tick in values.x_ticks] == ["1k", "2k", "4k"]
    assert values.zero is None
    assert differences.zero == differences.lines[0].marks[1].y
    assert differences.lines[0].name == f"nsa {MINUS} dense"
    assert differences.lines[0].marks[2].label == f"up to 4k: {MINUS}0.250 [{MINUS}0.300, {MINUS}0.200]"


def test_a_model_has_one_style_in_both_charts():
    other = (ModelCurve(model="dense", points=points(1.0)), ModelCurve(model="nsa", points=points(1.5)))
    pair = (DifferenceCurve(candidate="nsa", baseline="dense", points=points(0.5)),)
    values, differences = charts_of(group(curves=other, differences=pair))
    assert (values.lines[1].style, differences.lines[0].style) == (1, 1)


def test_bands_break_where_an_interval_is_unknown():
    broken = (
        *points(3.0, 2.5),
        CurvePoint(end=4096, value=2.0),
        CurvePoint(end=8192, value=2.0, low=1.5, high=2.5),
    )
    [chart] = charts_of(group(curves=(ModelCurve(model="nsa", points=broken),), differences=()))
    assert [len(band.split()) for band in chart.lines[0].bands] == [4, 2]
    assert len(chart.lines[0].points.split()) == 4


def test_close_ends_leave_out_labels_and_keep_the_last():
    ends = tuple(CurvePoint(end=1000 + 10 * step, value=1.0) for step in range(40))
    [chart] = charts_of(group(curves=(ModelCurve(model="nsa", points=ends),), differences=()))
    assert 1 < len(chart.x_ticks) < 20
    assert chart.x_ticks[-1].label == "1,390"


def test_ends_that_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match="ends of buckets must ascend"):
        group(curves=(ModelCurve(model="nsa", points=points(1.0) * 2),))


def test_nothing_to_draw_draws_nothing():
    assert charts_of(group(curves=(), differences=())) == ()


def test_pictures_are_the_same_bytes_at_every_call():
    one, other = curve_pictures([group()]), curve_pictures([group()])
    assert one == other
    assert one[0].name == "ppl-nll"
    assert one[0].png.startswith(b"\x89PNG")
    assert one[0].pdf.startswith(b"%PDF")
