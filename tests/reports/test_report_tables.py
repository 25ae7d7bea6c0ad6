"""What the score tables say, before any HTML."""

import math

import pytest

from nsa_reports import ScoreRow, ShownDifference, ShownScore, _colours
from nsa_reports import _format as fmt
from nsa_reports._tables import BAR_WIDTH, build_table

MODELS = ("nsa", "dense")


def _row(difference, low, high, significant, **changes):
    pair = ShownDifference(
        candidate="nsa", baseline="dense", difference=difference, low=low, high=high, significant=significant
    )
    scores = (ShownScore(value=0.9, low=0.85, high=0.95), ShownScore(value=0.875))
    return ScoreRow(**{"task": "t", "metric": "m", "scores": scores, "comparisons": (pair,), **changes})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fmt.score(0.934), "93.4 %"),
        (fmt.score(21.4, percent=False), "21.40"),
        (fmt.score(None), fmt.MISSING),
        (fmt.score(math.nan), fmt.MISSING),
        (fmt.difference(0.025), "+2.5 pp"),
        (fmt.difference(-0.0001), "0.0 pp"),
        (fmt.difference(-0.5), "\u221250.0 pp"),
        (fmt.interval(0.1, None), ""),
        (fmt.p_value(0.0), "< 0.001"),
        (fmt.p_value(0.0314), "0.031"),
        (fmt.tokens(512), "512"),
        (fmt.tokens(65536), "64k"),
        (fmt.tokens(3000), "3,000"),
        (fmt.tokens(1048576), "1M"),
        (fmt.depth(33.3), "33.3"),
        (fmt.depth(50.0), "50"),
        (fmt.parameters(6_123_456), "6.12 M"),
        (fmt.level(0.999), "99.9 %"),
    ],
)
def test_numbers_are_written_as_people_read_them(text, expected):
    assert text == expected


@pytest.mark.parametrize(
    ("difference", "significant", "higher", "verdict"),
    [
        (0.1, True, True, "nsa better"),
        (-0.1, True, True, "dense better"),
        (-0.1, True, False, "nsa better"),
        (0.1, False, True, "not distinguishable"),
        (0.1, None, True, fmt.MISSING),
        (math.nan, True, True, fmt.MISSING),
    ],
)
def test_the_verdict_follows_the_test_and_the_direction(difference, significant, higher, verdict):
    table = build_table(MODELS, [_row(difference, None, None, significant, higher_is_better=higher)])
    assert table.rows[0].comparisons[0].verdict == verdict


def test_only_a_proven_lead_is_bold():
    proven, unproven = build_table(MODELS, [_row(0.1, 0.05, 0.15, True), _row(0.1, -0.1, 0.3, False)]).rows
    assert [score.best for score in proven.scores] == [True, False]
    assert [score.best for score in unproven.scores] == [False, False]


def test_bars_of_percent_rows_share_a_scale_around_zero():
    narrow, wide = (
        row.comparisons[0]
        for row in build_table(MODELS, [_row(0.05, 0, 0.1, True), _row(0.15, 0.1, 0.2, True)]).rows
    )
    assert narrow.bar.low == BAR_WIDTH / 2
    assert narrow.bar.high == wide.bar.low
    assert narrow.bar.low < narrow.bar.point < narrow.bar.high < wide.bar.point


def test_a_plain_score_has_its_own_bar_scale():
    table = build_table(MODELS, [_row(-0.6, -0.9, -0.3, True, percent=False)])
    assert table.scale == ""
    assert table.rows[0].comparisons[0].bar_scale == "0.900"


def test_long_names_keep_both_ends_unless_that_confuses_them():
    long = "llama-3.1-8b-nsa-long-context-run-{}-step-120000"
    assert fmt.short_names([long.format(1), "dense"])[long.format(1)] == "llama-3.1-8b-…-step-120000"
    same = [long.format(1), long.format(2)]
    assert fmt.short_names(same) == dict(zip(same, same, strict=True))


@pytest.mark.parametrize("colours", [_colours.SCORE, _colours.DIFFERENCE])
def test_ink_contrasts_with_every_cell_colour(colours):
    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for index, colour in enumerate(colours):
        assert _colours.colour_at(colours, index / (len(colours) - 1)) == colour
        ink = luminance(_colours.ink_on(colour))
        light, dark = sorted((ink, luminance(colour)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG's AA for small text
