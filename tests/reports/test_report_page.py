"""The page: what it shows, that it needs nothing else, and that text in it stays text."""

import base64
import dataclasses
import hashlib
import re

import jinja2
import pytest

import nsa_reports
from nsa_eval.sections.provenance import Origin
from nsa_reports import Cell, ModelMap, Reply, SampleLimits
from nsa_reports._format import MINUS
from nsa_reports.render import environment

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- --> {{7*7}} {% raw %} ]]>",
    "\"'><svg onload=alert(1)>",
    "</title></style></textarea></pre>\u2028",
)


def to_html(demo, **options):
    return nsa_reports.to_html(demo.page(), **options)


def render(demo, **options):
    return nsa_reports.render(demo.page(), **options)


@pytest.fixture(scope="module")
def demo(make_view):
    return make_view()


@pytest.fixture(scope="module")
def html(demo):
    return to_html(demo)


@pytest.fixture(scope="module")
def page(html, parse_page):
    return parse_page(html)


def test_the_outcome_stands_first(page, demo):
    sentence = demo.headline.replace(" %", "\xa0%")  # a number and its unit stay on one line
    words = " ".join(sentence.split())
    assert page.text.index(words) < page.text.index("Scores with their own 95 % intervals")
    for row in demo.rows:
        assert row.task in page.text


def test_the_table_gives_scores_intervals_p_and_verdict(page, demo):
    row = demo.rows[0]
    pair = row.comparisons[0]
    for text in (
        f"{100 * row.scores[0].value:.1f} %",
        f"[{100 * row.scores[0].low:.1f}, {100 * row.scores[0].high:.1f}]",
        f"{100 * row.scores[1].value:.1f} %",
        f"{MINUS}{-100 * pair.difference:.1f} pp",
        "Holm < 0.001",
        f"{100 * pair.minimum_detectable:.1f} pp",
        "dense better",
        "not distinguishable",
        "word_perplexity",
        "21.40",
    ):
        assert text in page.text


def test_notes_count_events_and_say_none(page):
    assert "Prompts truncated: none of 480" in page.text
    assert "Longest context taken from a default: 1" in page.text
    assert "dense: 2,048 tokens, from the config" in page.text


def test_no_notes_at_all_is_said_plainly(demo, parse_page):
    page = parse_page(to_html(dataclasses.replace(demo, audit=())))
    assert "None: nothing was recorded" in page.text


def test_provenance_is_complete(page, demo):
    card = demo.models[0]
    origin = demo.provenance
    for text in (
        card.path,
        card.fingerprint,
        "6.12 M",
        card.dtype,
        card.tokenizer,
        origin.command,
        origin.git_commit,
    ):
        assert text in page.text
    assert "torch 2.13.0" in page.text
    assert 'path: "zoo:twin-nsa-v0"' in page.text


def test_nothing_is_fetched_from_anywhere(page):
    assert "link" not in {tag for tag, attributes in page.tags if attributes.get("rel") not in (None, "icon")}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            target = attributes.get(name) or ""
            assert not re.match(r"\s*(\w+:)?//", target), f"<{tag} {name}={target}>"
            assert tag != "script" or name != "src" or not target
    assert not {"iframe", "object", "embed", "base", "form", "img"} & {tag for tag, _ in page.tags}


def test_the_policy_allows_exactly_the_two_inline_scripts(page):
    policy = next(meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta)
    hashes = {
        f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
        for script in page.scripts
    }
    assert len(page.scripts) == 2
    assert hashes == set(re.findall(r"sha256-[\w+/=]+", policy))
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_plotly_comes_once_and_only_when_there_is_something_to_draw(html, demo, make_view):
    assert html.count("plotly.js v") == 1
    assert len(to_html(dataclasses.replace(demo, heatmaps=()))) < 200_000


def test_charts_hold_scores_and_hover_texts(page, demo):
    group = demo.heatmaps[0]
    chart = page.json["charts"]["g0-p0"]
    heatmap = chart["data"][0]
    by_place = {(cell.length, cell.depth): cell for cell in group.maps[0].cells}
    for row, depth in enumerate(group.depths):
        for column, length in enumerate(group.lengths):
            cell = by_place.get((length, depth))
            assert heatmap["z"][row][column] == (None if cell is None else pytest.approx(100 * cell.value))
    first = by_place[group.lengths[0], group.depths[0]]
    assert heatmap["hovertext"][0][0] == (
        f"512 tokens, depth 0 %<br>{100 * first.value:.1f} % "
        f"[{100 * first.low:.1f}, {100 * first.high:.1f}], n = 4"
    )
    assert chart["layout"]["yaxis"]["range"] == [4.5, -0.5]  # depth 0 at the top
    difference = page.json["charts"]["g0-p2"]["data"][0]
    assert difference["zmin"] == -difference["zmax"]


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


def test_a_low_chart_is_high_enough_for_its_axis_label(make_view, make_group, parse_page):
    page = parse_page(to_html(make_view(("solo",), groups=(make_group(("solo",), depths=2),))))
    layout = page.json["charts"]["g0-p0"]["layout"]
    assert (
        layout["height"] - layout["margin"]["t"] - layout["margin"]["b"] >= 100
    )  # "Needle depth (%)" in 11 px


def test_a_missing_cell_is_blank_and_not_zero(page, demo):
    group = demo.heatmaps[0]
    column, row = len(group.lengths) - 1, 1
    for chart in ("g0-p0", "g0-p1", "g0-p2"):
        heatmap = page.json["charts"][chart]["data"][0]
        assert heatmap["z"][row][column] is None
        assert heatmap["text"][row][column] == ""
        assert heatmap["hovertext"][row][column].endswith("no result")
    cells = [a["data-cell"] for a in page.attributes("button") if a.get("data-section") == "g0"]
    assert cells.count("0,0") == 3
    assert f"{row},{column}" not in cells
    assert "Blank: no result." in page.text


def test_nan_is_a_missing_cell(make_view, make_group, parse_page):
    group = make_group(("solo",), lengths=(512,), depths=2)
    cells = (Cell(length=512, depth=0.0, value=float("nan")), Cell(length=512, depth=100.0, value=0.0))
    group = dataclasses.replace(group, maps=(ModelMap(model="solo", cells=cells),))
    page = parse_page(to_html(make_view(("solo",), groups=(group,))))
    assert page.json["charts"]["g0-p0"]["data"][0]["z"] == [[None], [0.0]]


def test_every_grid_is_also_a_table_with_a_button_per_cell(page, demo):
    buttons = [a for a in page.attributes("button") if "data-cell" in a]
    grids = [grid.cells for group in demo.heatmaps for grid in (*group.maps, *group.differences)]
    assert len(buttons) == sum(map(len, grids))
    first = demo.heatmaps[0].maps[0].cells[0]
    assert buttons[0]["aria-label"].startswith(f"nsa, length 512, depth 0 %: {100 * first.value:.1f} %")


def test_samples_of_both_models_stand_side_by_side(page, demo):
    bundle = page.json["samples"]["g0"]["0,0"]
    record = bundle["shown"][0]
    sample = next(s for s in demo.heatmaps[0].samples if s.id == record["id"])
    assert [page.json["models"][reply["model"]] for reply in record["replies"]] == ["nsa", "dense"]
    assert [reply["text"] for reply in record["replies"]] == [reply.text for reply in sample.replies]
    assert (record["needle"], record["seed"], record["prompt"]) == (
        sample.needle,
        sample.seed,
        sample.prompt_end,
    )
    assert record["expected"] == list(sample.expected)


def test_samples_left_out_are_counted(demo, parse_page):
    page = parse_page(to_html(demo, limits=SampleLimits(per_cell=1)))
    assert (
        "This page holds 22 of 79 samples" in page.text
    )  # 14 + 5 cells with one each, 3 of a task without a grid


def _view_full_of(text, make_view, make_group):
    names = (text, "dense")
    group = make_group(names, task=text, lengths=(512,), depths=2, per_cell=1)
    sample = dataclasses.replace(
        group.samples[0],
        id=text,
        prompt_end=text,
        needle=text,
        expected=(text,),
        replies=(Reply(model=text, text=text, score=1.0, notes=(text,)),),
    )
    view = make_view(names, groups=(group,), title=text)
    return dataclasses.replace(
        view,
        headline=text,
        subtitle=text,
        heatmaps=(
            dataclasses.replace(group, samples=(sample,), title=text, description=text, protocol=text),
        ),
        provenance=Origin(config=text, command=text, machine={text: text}),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_wherever_it_stands(text, make_view, make_group, parse_page):
    page = parse_page(to_html(_view_full_of(text, make_view, make_group)))
    plain = parse_page(to_html(_view_full_of("plain", make_view, make_group)))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]  # not one element more
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(" ".join(text.split())) > 10
    record = page.json["samples"]["g0"]["0,0"]["shown"][0]
    assert record["replies"][0]["text"] == record["prompt"] == record["id"] == text
    assert page.json["charts"] == plain.json["charts"]  # plotly reads HTML in labels: no free text goes there


def test_page_script_never_parses_text_as_html(page):
    script = page.scripts[-1]
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in script


def test_one_model_alone_needs_no_comparison(make_view, parse_page):
    page = parse_page(to_html(make_view(("solo",))))
    assert "solo" in page.text
    assert "Difference" not in page.text
    assert "Verdict" not in page.text
    assert set(page.json["charts"]) == {"g0-p0", "g1-p0"}


def test_three_models_give_a_line_per_comparison(make_view, parse_page):
    page = parse_page(to_html(make_view(("nsa", "moba", "dense"))))
    assert len(page.json["charts"]) == 10
    assert f"nsa {MINUS} dense" in page.text
    assert f"moba {MINUS} dense" in page.text
    assert "Compared" in page.text


def test_render_writes_the_page_and_links_figures_that_exist(demo, parse_page, tmp_path):
    out = render(demo, out=tmp_path / "new" / "report.html")
    assert out == tmp_path / "new" / "report.html"
    links = [a["href"] for a in parse_page(out.read_text(encoding="utf-8")).attributes("a")]
    figures = [link for link in links if link.startswith("figures/")]
    assert len(figures) == 2 * 4 * 2  # two tasks, three panels and all together, PNG and SVG
    assert all((out.parent / figure).is_file() for figure in figures)
    assert sorted(path.name for path in out.parent.iterdir()) == ["figures", "report.html"]


def test_a_page_without_saved_figures_links_none(page):
    assert not [a for a in page.attributes("a") if a["href"].startswith("figures/")]


def test_undecodable_names_do_not_lose_the_report(make_view, tmp_path):
    out = render(
        make_view(("solo\udcff",), groups=(), tasks=False, title="file \udcff"), out=tmp_path / "r.html"
    )
    assert "file ?" in out.read_text(encoding="utf-8")


def test_an_undefined_name_in_a_template_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ missing }}").render()
