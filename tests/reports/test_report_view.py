"""A view that does not fit together fails where it is built."""

import dataclasses

import pytest

from nsa_reports import (
    Cell,
    Comparison,
    Estimate,
    HeatmapGroup,
    ModelCard,
    ModelMap,
    ReportView,
    Sample,
    ScoreRow,
)

MODELS = (ModelCard(name="nsa"), ModelCard(name="dense"))


def _report(**changes):
    return ReportView(**{"title": "t", "headline": "h", "models": MODELS, **changes})


def test_a_score_is_needed_for_every_model():
    row = ScoreRow(task="needle", metric="score", scores=(Estimate(value=1.0),))
    with pytest.raises(ValueError, match="needle: 1 scores for 2 models"):
        _report(rows=(row,))


def test_a_comparison_names_known_models():
    pair = Comparison(candidate="nsa", baseline="full", difference=0.1)
    row = ScoreRow(task="needle", metric="score", scores=(None, None), comparisons=(pair,))
    with pytest.raises(ValueError, match=r"unknown model 'full'.*'dense', 'nsa'"):
        _report(rows=(row,))


def test_model_names_are_distinct():
    with pytest.raises(ValueError, match="distinct names"):
        _report(models=(ModelCard(name="a"), ModelCard(name="a")))


@pytest.mark.parametrize("axis", [{"lengths": (2048, 1024)}, {"lengths": (512, 512)}, {"depths": ()}])
def test_axes_ascend_without_repeats(axis):
    with pytest.raises(ValueError, match="ascending without repeats"):
        HeatmapGroup(**{"task": "t", "lengths": (512,), "depths": (0.0,), "maps": (), **axis})


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ((Cell(length=4096, depth=0.0, value=1.0),), "not on the grid"),
        ((Cell(length=512, depth=0.0, value=1.0),) * 2, "given twice"),
    ],
)
def test_cells_lie_on_the_grid_once(cells, message):
    with pytest.raises(ValueError, match=message):
        HeatmapGroup(task="t", lengths=(512,), depths=(0.0,), maps=(ModelMap(model="nsa", cells=cells),))


def test_needle_samples_belong_to_a_cell():
    with pytest.raises(ValueError, match="no cell of the grid"):
        HeatmapGroup(task="t", lengths=(512,), depths=(0.0,), maps=(), samples=(Sample(id="1", replies=()),))


def test_views_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        _report().title = "other"
