"""A page stays small with many models: what a cell, a line and a reply may take, and figures for papers."""

import dataclasses
import io
import re

import pytest
from PIL import Image

import nsa_reports
from nsa_reports._png import with_palette
from nsa_reports.figures import combined_figures, save_figures, sheets_of
from nsa_reports.panels import panels_of

LENGTHS = (4096, 8192, 16384, 32768, 65536)


def names_of(count):
    """Like those of a config's variants: long, and alike at the start."""
    return [f"dense+quest@{budget},dense_layers=none" for budget in range(1, count)] + ["dense"]


@pytest.fixture(scope="module")
def pages(make_view, make_group):
    """Pages of 5 and of 25 models on a grid of 55 cells, without samples and with them."""

    def page(count, samples):
        names = names_of(count)
        group = make_group(names, lengths=LENGTHS, depths=11, per_cell=2)
        view = make_view(names, groups=(group,), tasks=False)
        return (
            view if samples else dataclasses.replace(view, heatmaps=(dataclasses.replace(group, samples=()),))
        )

    return {(count, samples): page(count, samples) for count in (5, 25) for samples in (False, True)}


@pytest.fixture(scope="module")
def html(pages):
    return {key: nsa_reports.to_html(view.page()) for key, view in pages.items()}


def test_a_cell_takes_few_bytes(html):
    """Its class, its reading and its text: its place and its model's name are said once for all."""
    maps = re.findall(r'<table class="heatmap".*?</table>', html[25, False], re.S)
    assert len(maps) == 25 + 24
    assert sum(map(len, maps)) / (len(maps) * 55) < 95
    assert max(len(cell) for table in maps for cell in re.findall(r"<td.*?</td>", table)) < 100


def test_a_colour_is_named_once(html):
    text = html[25, False]
    assert not re.search(r"<td[^>]*style=", text)
    classes = re.findall(r"^\.(k\d+)\{", text, re.M)
    assert len(classes) == len(set(classes)) < 30
    assert set(re.findall(r'<td class="(k\d+)"', text)) == set(classes)


def test_a_model_more_takes_two_maps_and_its_lines(html):
    """On a grid of 55 cells: 110 cells, a line in each table, a column of provenance."""
    grown = len(html[25, False]) - len(html[5, False])
    assert grown / 20 < 17_000


def test_replies_that_are_alike_stand_once(pages, html, parse_page):
    found = parse_page(html[25, True]).json["samples"]["g0"]
    records = [record for bundle in found.values() for record in bundle["shown"]]
    assert {sum(len(reply["models"]) for reply in record["replies"]) for record in records} == {25}
    right = [reply for record in records for reply in record["replies"] if reply["score"] == 1.0]
    assert len(right) <= len(records)  # they are all the same text
    # 20 models more answer as those before them did: numbers in a list, and a few wrong replies.
    data = [
        re.search(r'id="report-data">(.*?)</script>', html[key], re.S)[1] for key in ((5, True), (25, True))
    ]
    assert (len(data[1]) - len(data[0])) / 20 / len(records) < 15


def test_the_figures_of_a_page_take_less_than_its_maps(make_group):
    """A figure of a few models is one picture; of many a page of a PDF for each, at 15 kB of base64."""
    few = make_group(("nsa", "dense"), lengths=LENGTHS, depths=11)
    many = make_group(names_of(9), lengths=LENGTHS, depths=11)
    one, other = combined_figures([few])[0], combined_figures([many])[0]
    assert len(one.png) < 75_000
    assert len(one.pdf) < 40_000
    assert other.png == b""
    assert len(other.pdf) / 8 < 15_000
    assert len(re.findall(rb"/Type /Page\b(?!s)", other.pdf)) == 8


def test_many_models_have_a_figure_for_each_comparison(make_group):
    group = make_group(names_of(6), lengths=(512,), depths=3)
    titles = [[panel.full_title for panel in sheet] for sheet in sheets_of(group, 0.2)]
    first, *_, baseline = names_of(6)
    assert titles[0] == [first, baseline, f"{first} \N{MINUS SIGN} {baseline}"]
    assert len(titles) == 5
    alone = dataclasses.replace(group, differences=())
    assert [len(sheet) for sheet in sheets_of(alone, 0.2)] == [3, 3]
    few = make_group(names_of(4), lengths=(512,), depths=3)
    assert sheets_of(few, 0.2) == [panels_of(few, 0.2)]


def test_the_files_of_many_models_are_a_pdf_and_every_map(make_group, tmp_path):
    [found] = save_figures([make_group(names_of(5), lengths=(512,), depths=2)], tmp_path)
    assert (found.combined.png, found.combined.svg) == ("", "")
    assert (
        found.combined.read(tmp_path)
        == combined_figures([make_group(names_of(5), lengths=(512,), depths=2)])[0]
    )
    assert all(files.png and files.svg and not files.pdf for files in found.panels)
    assert len(found.panels) == 5 + 4


def test_a_palette_changes_no_ground_and_no_letter_much():
    picture = Image.new("RGB", (64, 64), "white")
    for x in range(64):
        for y in range(16):
            picture.putpixel(
                (x, y), (4 * x, 16 * y, 255 - 4 * x)
            )  # 1,024 colours, as at the edges of letters
    for x in range(64):
        for y in range(16, 40):
            picture.putpixel((x, y), (8, 29, 88))
    file = io.BytesIO()
    picture.save(file, "PNG")
    small = with_palette(file.getvalue())
    drawn = Image.open(io.BytesIO(small))
    assert (drawn.mode, drawn.size) == ("P", (64, 64))
    again = drawn.convert("RGB")
    assert (again.getpixel((5, 20)), again.getpixel((5, 60))) == ((8, 29, 88), (255, 255, 255))
    off = [
        max(abs(a - b) for a, b in zip(again.getpixel((x, y)), picture.getpixel((x, y)), strict=True))
        for x in range(64)
        for y in range(16)
    ]
    assert max(off) <= 32
    few = Image.new("RGB", (4, 4), "white")
    file = io.BytesIO()
    few.save(file, "PNG")
    assert Image.open(io.BytesIO(with_palette(file.getvalue()))).convert("RGB").tobytes() == few.tobytes()
