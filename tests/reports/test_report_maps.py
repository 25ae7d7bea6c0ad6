"""Maps of scores on the page: what their cells say, and that they can be read."""

import dataclasses
import re

import pytest

import nsa_reports
from nsa_reports import Cell, DifferenceMap, ModelMap
from nsa_reports._colours import DIFFERENCE, SCORE, colour_at, contrast
from nsa_reports._format import MINUS


def to_html(demo):
    return nsa_reports.to_html(demo.page())


@pytest.fixture(scope="module")
def demo(make_view):
    return make_view()


@pytest.fixture(scope="module")
def page(demo, parse_page):
    return parse_page(to_html(demo))


def test_maps_hold_scores_and_readings(page, demo):
    group = demo.heatmaps[0]
    by_place = {(cell.length, cell.depth): cell for cell in group.maps[0].cells}
    rows = page.cells(0)
    assert (len(rows), {len(row) for row in rows}) == (len(group.depths), {len(group.lengths)})
    for row, depth in enumerate(group.depths):  # depth 0 at the top
        for column, length in enumerate(group.lengths):
            cell, shown = by_place.get((length, depth)), rows[row][column]
            assert (shown and shown["text"]) == (cell and f"{100 * cell.value:.0f}")
    first = by_place[group.lengths[0], group.depths[0]]
    reading = f"{100 * first.value:.1f} % [{100 * first.low:.1f}, {100 * first.high:.1f}], n = 4"
    assert rows[0][0]["title"] == reading


def test_colours_run_from_dark_to_pale_and_differences_both_ways(make_view, make_group, parse_page):
    group = make_group(("a", "b"), lengths=(512,), depths=3)
    depths = (0.0, 50.0, 100.0)
    score, gap = (
        tuple(Cell(length=512, depth=depth, value=value) for depth, value in zip(depths, values, strict=True))
        for values in ((0.0, 0.5, 1.0), (-0.6, 0.0, 0.6))
    )
    group = dataclasses.replace(
        group,
        maps=(ModelMap(model="a", cells=score), ModelMap(model="b", cells=score)),
        differences=(DifferenceMap(candidate="a", baseline="b", cells=gap),),
    )
    page = parse_page(to_html(make_view(("a", "b"), groups=(group,))))

    def grounds(number):
        return [re.match(r"background:(#\w{6})", row[0]["style"])[1] for row in page.cells(number)]

    assert grounds(0) == [SCORE[0], colour_at(SCORE, 0.5), SCORE[-1]]
    assert grounds(2) == [DIFFERENCE[0], DIFFERENCE[4], DIFFERENCE[-1]]  # the scale ends at the largest one
    assert [row[0]["text"] for row in page.cells(2)] == [f"{MINUS}60", "0", "+60"]


def test_text_in_cells_and_on_the_page_has_contrast(make_view, make_group, parse_page):
    """WCAG 2 wants 4.5 to 1 of text; every score and difference in whole percent is tried."""
    values = [index / 100 for index in range(101)]
    group = make_group(("a", "b"), lengths=(512,), depths=101, per_cell=1)
    cells, gaps = (
        tuple(Cell(length=512, depth=d, value=v) for d, v in zip(group.depths, listed, strict=True))
        for listed in (values, [2 * value - 1 for value in values])
    )
    group = dataclasses.replace(
        group,
        maps=(ModelMap(model="a", cells=cells), ModelMap(model="b", cells=cells)),
        differences=(DifferenceMap(candidate="a", baseline="b", cells=gaps),),
    )
    html = to_html(make_view(("a", "b"), groups=(group,)))
    styles = [row[0]["style"] for number in range(3) for row in parse_page(html).cells(number)]
    pairs = [re.fullmatch(r"background:(#\w{6});color:(#\w{6})", style).groups() for style in styles]
    assert len(set(pairs)) > 150
    assert min(contrast(*pair) for pair in pairs) >= 4.5
    themes = re.findall(r":root \{(.*?)\}", html, re.S)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))
        inks = ("ink", "soft", "link", "candidate", "baseline", "right", "wrong", "partly")
        assert min(contrast(colours[ink], colours["paper"]) for ink in inks) >= 4.5
        assert contrast(colours["ink"], colours["faint"]) >= 4.5
        assert contrast(colours["ink"], colours["mark"]) >= 4.5


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((1, 1), ", 1 sample per cell."),
        ((4, 4), ", 4 samples per cell."),
        ((3, 4), ", 3 to 4 samples per cell."),
    ],
)
def test_samples_per_cell_are_counted_in_english(make_view, make_group, parse_page, counts, text):
    group = make_group(("solo",), lengths=(512,), depths=2)
    cells = tuple(
        Cell(length=512, depth=depth, value=0.5, n=n) for depth, n in zip((0.0, 100.0), counts, strict=True)
    )
    group = dataclasses.replace(group, maps=(ModelMap(model="solo", cells=cells),))
    assert text in parse_page(to_html(make_view(("solo",), groups=(group,)))).text


def test_axis_titles_are_text_in_the_flow_of_the_smallest_map(make_view, make_group, parse_page):
    """Drawn beside a picture they were cut off on small maps."""
    group = make_group(("solo",), lengths=(512,), depths=2)
    html = to_html(make_view(("solo",), groups=(group,)))
    (head,) = re.findall(r'<table class="heatmap".*?<thead>(.*?)</thead>', html, re.S)
    assert re.findall(r"<th[^>]*>([^<]+)</th>", head) == ["Needle depth", "Context length (tokens)", "512"]
    assert re.findall(r'scope="row" class="depth">([^<]+)<', html) == ["0 %", "100 %"]


def test_a_missing_cell_is_blank_and_not_zero(page, demo):
    group = demo.heatmaps[0]
    column, row = len(group.lengths) - 1, 1
    for number in range(3):
        assert page.cells(number)[row][column] is None
        assert page.cells(number)[row][0] is not None
    assert "Blank: no result." in page.text


def test_nan_is_a_missing_cell(make_view, make_group, parse_page):
    group = make_group(("solo",), lengths=(512,), depths=2)
    cells = (Cell(length=512, depth=0.0, value=float("nan")), Cell(length=512, depth=100.0, value=0.0))
    group = dataclasses.replace(group, maps=(ModelMap(model="solo", cells=cells),))
    page = parse_page(to_html(make_view(("solo",), groups=(group,))))
    assert [row[0] and row[0]["text"] for row in page.cells(0)] == [None, "0"]


def test_every_grid_is_a_table_whose_cells_the_script_makes_buttons_of(page, demo):
    """Without a script nothing could be done with a button; with one each says its model and place."""
    grids = [grid.cells for group in demo.heatmaps for grid in (*group.maps, *group.differences)]
    shown = [cell for number in range(len(page.maps)) for row in page.cells(number) for cell in row]
    assert sum(cell is not None for cell in shown) == sum(map(len, grids))
    assert not [a for a in page.attributes("button") if "title" in a]
    heads = [a["aria-label"] for a in page.attributes("table") if a.get("class") == "heatmap"]
    assert heads[0] == "nsa, %"
    script = page.scripts[-1]
    assert "${panel}, length ${grid.columns[column]}, depth ${grid.rows[row]}: ${cell.title}" in script
    assert page.json["sections"]["heatmaps"][0] == {
        "id": "g0",
        "rows": ["0 %", "25 %", "50 %", "75 %", "100 %"],
        "columns": ["512", "1k", "2k"],
    }


def test_plain_numbers_have_a_scale_of_their_own_and_the_better_end_stays_pale(
    make_view, make_group, parse_page
):
    group = make_group(("a", "b"), lengths=(512,), depths=3)
    depths = (0.0, 50.0, 100.0)
    nats, gap = (
        tuple(
            Cell(length=512, depth=depth, value=value, n=4)
            for depth, value in zip(depths, values, strict=True)
        )
        for values in ((0.0, 2.0, 4.0), (-0.3, 0.0, 0.0004))
    )
    group = dataclasses.replace(
        group,
        maps=(ModelMap(model="a", cells=nats), ModelMap(model="b", cells=nats)),
        differences=(DifferenceMap(candidate="a", baseline="b", cells=gap),),
        percent=False,
        unit="nll (nats a token)",
        higher_is_better=False,
    )
    html = to_html(make_view(("a", "b"), groups=(group,)))
    page = parse_page(html)

    def grounds(number):
        return [re.match(r"background:(#\w{6})", row[0]["style"])[1] for row in page.cells(number)]

    assert grounds(0) == [SCORE[-1], colour_at(SCORE, 0.5), SCORE[0]]  # pale is best
    assert grounds(2)[:2] == [DIFFERENCE[-1], DIFFERENCE[4]]  # blue where the candidate is ahead
    assert [row[0]["text"] for row in page.cells(0)] == ["0.00", "2.00", "4.00"]
    assert [row[0]["text"] for row in page.cells(2)] == [f"{MINUS}0.30", "0.00", "+0.0004"]
    assert page.cells(0)[1][0]["title"] == "2.00, n = 4"
    legend = re.findall(r'class="legend">(.*?) <span>(.*?)</span>.*?<span>([^<]*)</span></span>', html)
    assert ("nll (nats a token)", "0.00", "4.00") in legend
    assert ("difference", f"{MINUS}0.30", "+0.30") in legend
    assert "%</span></span>" not in html


@pytest.mark.parametrize(
    ("value", "end"), [(0.3, 0.3), (0.31, 0.4), (4.0, 4.0), (6.1, 8.0), (9.0, 10.0), (0.0011, 0.0015)]
)
def test_scales_end_at_round_numbers(value, end):
    from nsa_reports.panels import nice_end

    assert nice_end(value) == pytest.approx(end)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (12.34, "12.3"), (123.4, "123"), (0.00172, "0.002"), (5.4e-5, "5e-5"), (9.96, "10.0")],
)
def test_a_cell_holds_few_digits_and_never_a_false_zero(value, text):
    from nsa_reports._format import brief

    assert brief(value) == text.replace("e-", f"e{MINUS}")
