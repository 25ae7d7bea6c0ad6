"""Pages of many models: maps beside their differences, lines for columns, and what is alike said once."""

import re

import pytest

import nsa_reports
from nsa_eval.sections.costs import CostRow, Costs, Setting
from nsa_eval.sections.heatmaps import Heatmaps
from nsa_eval.sections.provenance import ModelCard, Provenance
from nsa_reports._format import MINUS
from nsa_reports._map_figure import title_lines

NAMES = (*(f"m{index}" for index in range(13)), "dense")


@pytest.fixture(scope="module")
def demo(make_view, make_group):
    return make_view(NAMES, groups=(make_group(NAMES, lengths=(512, 1024), depths=3),), tasks=False)


@pytest.fixture(scope="module")
def html(demo):
    return nsa_reports.to_html(demo.page())


def plain(text):
    return " ".join(re.sub(r"<[^>]+>", " ", text.replace("<wbr>", "")).split())


def test_a_difference_stands_beside_its_candidates_map(demo, make_group):
    [part] = Heatmaps(groups=demo.heatmaps).parts
    assert [[panel.title for panel in block] for block in part.blocks[:2]] == [
        ["m0", f"m0 {MINUS} dense"],
        ["m1", f"m1 {MINUS} dense"],
    ]
    assert [[panel.title for panel in block] for block in part.blocks[-1:]] == [["dense"]]
    assert (len(part.shown), len(part.folded)) == (12, 2)
    [few] = Heatmaps(groups=(make_group(NAMES[-4:], lengths=(512,), depths=2),)).parts
    assert [len(block) for block in few.blocks] == [1] * 7
    assert (few.paired, few.folded) == (False, ())


def test_more_than_twelve_maps_are_folded_and_none_is_lost(html):
    fold = html.split("<summary>2 more models</summary>")[1].split("</details>")[0]
    assert fold.count('<table class="heatmap"') == 3  # the last candidate's, its difference, the baseline's
    assert html.count('<table class="heatmap"') == 14 + 13


def test_scores_by_length_are_a_line_for_each_model(html, demo):
    table = html.split('<table class="lines matrix">')[1].split("</table>")[0]
    lines = [plain(line) for line in re.findall(r"<tr>(.*?)</tr>", table, re.S)]
    assert lines[0] == "Model 512 n = 12 1k n = 12"
    assert [line.split()[0] for line in lines[1:]] == list(NAMES)
    [group] = demo.heatmaps
    at_512 = group.by_length[0].scores[3]
    assert lines[4].startswith(f"m3 {100 * at_512.value:.1f} % [{100 * at_512.low:.1f}, ")
    after = html.split('<table class="lines matrix">')[1]
    assert "The same with differences and their intervals" in after.split('<table class="lines">')[0]


def test_colour_in_it_follows_the_verdict(html, demo):
    [group] = demo.heatmaps
    table = html.split('<table class="lines matrix">')[1].split("</table>")[0]
    marked = re.findall(r'<td class="(candidate|baseline)">', table)
    found = [pair for row in group.by_length for pair in row.comparisons if pair.significant]
    assert len(marked) == len(found) > 0
    assert marked.count("candidate") == sum(pair.difference > 0 for pair in found)


def test_what_all_models_have_in_common_is_said_once():
    cards = tuple(
        ModelCard(name=name, path="zoo:m", fingerprint="f" * 64, max_length=2048, extra={"method": name})
        for name in NAMES
    )
    facts = {fact.label: fact for fact in Provenance(models=cards).facts}
    assert {label: fact.alike for label, fact in facts.items()} == {
        "Path": True,
        "Fingerprint": True,
        "Longest context": True,
        "method": False,
    }
    assert facts["method"].values == NAMES


def test_provenance_of_many_models_has_a_row_for_each(html, demo):
    section = html.split('<section id="provenance">')[1]
    assert section.count("a1b2c3d4" * 8) == 1
    table = section.split('<table class="lines">')[1].split("</table>")[0]
    assert plain(table.split("</thead>")[0]) == "Model Path Attention Parameters"
    assert table.count("zoo:twin-") == len(NAMES)


def settings(count, weights="1 MiB"):
    return tuple(
        Setting(model=f"m{i}", device="D", how="float32", weights=weights if i else "1 MiB", warm_up="1 s")
        for i in range(count)
    )


@pytest.mark.parametrize(
    ("count", "weights", "together"), [(7, "1 MiB", True), (6, "1 MiB", False), (7, "2 MiB", False)]
)
def test_costs_say_a_setting_once_where_many_models_share_it(count, weights, together):
    empty = dict.fromkeys(("prefill", "prompt", "decode", "pace", "memory", "reads", "tokens", "kept"), "")
    rows = tuple(CostRow(task=task, model=model, **empty) for task in "ab" for model in ("m0", "m1"))
    data = Costs(rows=rows, settings=settings(count, weights), memory=False)
    assert (data.together is not None) is together
    assert [(task, [row.model for row in listed]) for task, listed in data.by_task] == [
        ("a", ["m0", "m1"]),
        ("b", ["m0", "m1"]),
    ]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("dense", "dense"),
        ("dense+quest@512,dense_layers=none", "dense+quest@512,\ndense_layers=none"),
        ("a" * 60, f"{'a' * 15}…{'a' * 14}"),
        (f"dense+quest@512 {MINUS} dense+nothing", f"dense+quest@512\n{MINUS} dense+nothing"),
    ],
)
def test_a_long_name_is_a_title_of_two_lines_broken_at_its_joints(name, lines):
    assert title_lines(name, 30) == lines
