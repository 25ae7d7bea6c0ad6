"""A view that does not fit together fails where it is built."""

import dataclasses
from pathlib import Path

import pytest

from nsa_reports import (
    Anchor,
    Cell,
    DifferenceMap,
    HeatmapGroup,
    LengthRow,
    ModelMap,
    Page,
    Reply,
    ScoreRow,
    SectionData,
    SectionView,
    ShownDifference,
    ShownSample,
    ShownScore,
)

MODELS = ("nsa", "dense")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown(SectionData):
    """A section that shows whatever it is given."""

    pieces: tuple = ()
    by_name: dict = dataclasses.field(default_factory=dict)
    links: tuple = ()

    def anchors(self):
        return self.links


def _report(*pieces, models=MODELS, **more):
    section = SectionView(id="s", title="S", folder=Path(), data=Shown(pieces=pieces, **more))
    return Page(title="t", models=models, sections=(section,))


def test_a_score_is_needed_for_every_model():
    row = ScoreRow(task="needle", metric="score", scores=(ShownScore(value=1.0),))
    with pytest.raises(ValueError, match="needle: 1 scores for 2 models"):
        _report(row)


def test_a_comparison_names_known_models():
    pair = ShownDifference(candidate="nsa", baseline="full", difference=0.1)
    row = ScoreRow(task="needle", metric="score", scores=(None, None), comparisons=(pair,))
    with pytest.raises(ValueError, match=r"unknown model 'full'.*'dense', 'nsa'"):
        _report(row)


def test_model_names_are_distinct():
    with pytest.raises(ValueError, match="distinct names"):
        _report(models=("a", "a"))


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
        HeatmapGroup(
            task="t", lengths=(512,), depths=(0.0,), maps=(), samples=(ShownSample(id="1", replies=()),)
        )


def test_views_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        _report().title = "other"


@pytest.mark.parametrize(
    "piece",
    [
        LengthRow(length=512, scores=(ShownScore(value=1.0),)),
        ShownSample(id="1", replies=(Reply(model="full", text=""),)),
        HeatmapGroup(task="t", lengths=(512,), depths=(0.0,), maps=(ModelMap(model="full", cells=()),)),
        HeatmapGroup(
            task="t",
            lengths=(512,),
            depths=(0.0,),
            maps=(),
            differences=(DifferenceMap(candidate="nsa", baseline="full", cells=()),),
        ),
    ],
)
def test_every_piece_is_checked_wherever_a_section_keeps_it(piece):
    for page in ({"pieces": (piece,)}, {"by_name": {"deep": [Shown(pieces=(piece,))]}}):
        with pytest.raises(ValueError, match=r"1 scores for 2 models|unknown model 'full'"):
            _report(*page.get("pieces", ()), by_name=page.get("by_name", {}))


def test_sections_that_want_the_same_link_target_are_named():
    data = Shown(links=(Anchor(id="g0", title="a"),))
    sections = tuple(SectionView(id=name, title="S", folder=Path(), data=data) for name in ("a", "b"))
    with pytest.raises(ValueError, match="two of a link target called 'g0'"):
        Page(title="t", models=MODELS, sections=sections)


def test_an_id_is_safe_in_attributes():
    with pytest.raises(ValueError, match="made of letters"):
        SectionView(id='x"><script>', title="S", folder=Path(), data=Shown())
