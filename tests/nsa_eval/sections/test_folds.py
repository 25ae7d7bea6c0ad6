"""Members of groups on a page: folded away behind their group, found by links, and there on paper."""

import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest

from nsa_eval.material import Material
from nsa_eval.sections import build_page
from nsa_eval.sections._folds import Fold, folds
from nsa_reports import to_html

VOID = {"meta", "link", "br", "wbr", "input", "line", "circle", "img", "path", "rect"}


class Outline(HTMLParser):
    """Which details every section stands in, and whether all tags are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.inside, self.details = [], {}, 0

    def handle_starttag(self, tag, attrs):
        if tag in VOID:
            return
        given = dict(attrs)
        self.open.append((tag, given.get("class") or ""))
        if tag == "section":
            self.inside[given["id"]] = [kind for name, kind in self.open if name == "details"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag


@pytest.fixture
def page(tmp_path, write_model, scored):
    """A group of two tasks, one with a grid and one without, and a task of its own."""

    def grid(n):
        return scored(
            [1.0] * n, length=[256 * (1 + i % 2) for i in range(n)], depth=[float(i // 2) for i in range(n)]
        )

    tasks = {"alone": scored([1.0, 0.0]), "in_grid": grid(4), "in_list": scored([0.0, 1.0])}
    results = {
        name: {"alias": name, "sample_len": len(rows), "score,none": np.mean([row["score"] for row in rows])}
        for name, rows in tasks.items()
    }
    results["suite"] = {"alias": "suite", "score,none": np.mean([1.0, 0.5])}
    write_model(
        tmp_path, "a", tasks, results=results, group_subtasks={"suite": ["in_grid", "in_list"]},
    )  # fmt: skip
    return to_html(build_page(Material(tmp_path)))


def test_members_are_folded_and_groups_and_single_tasks_are_not(page):
    outline = Outline()
    outline.feed(page)
    titles = re.findall(r'<section id="(\w+)"[^>]*>\s*<h2><span class="name">(.*?)</span>', page)
    folded = {re.sub("<.*?>", "", title): "fold members" in outline.inside[key] for key, title in titles}
    assert folded == {"alone": False, "suite": False, "in_grid": True, "in_list": True}
    # The table of its members, its heatmaps, and its other tasks.
    assert page.count('<details open class="fold members">') == 3
    assert page.count("<summary>1 member of suite, one by one</summary>") == 2
    assert "<summary>Scores of its 2 members</summary>" in page


def test_the_navigation_leads_to_what_is_seen(page):
    links = re.findall(r'<li><a href="#([\w-]+)">([^<]*)</a>', page)
    assert {title for _, title in links} >= {"alone", "suite", "1 member of suite, one by one"}
    assert not {"in_list", "in_grid"} & {title for _, title in links}
    ids = set(re.findall(r'id="([\w-]+)"', page))
    assert {anchor for anchor, _ in links} <= ids


def test_on_paper_and_by_link_folds_open():
    templates = resources.files("nsa_reports") / "templates"
    script = (templates / "page.js").read_text()
    assert all(event in script for event in ('"beforeprint"', '"afterprint"', '"hashchange"'))
    print_rules = (templates / "page.css").read_text().partition("@media print")[2]
    assert "details.fold::details-content" in print_rules


def test_neighbours_of_one_group_are_one_fold():
    assert folds(["", "a", "a", "b", ""]) == [
        Fold(),
        Fold(opens="2 members of a, one by one", inside=True),
        Fold(closes=True, inside=True),
        Fold(opens="1 member of b, one by one", closes=True, inside=True),
        Fold(),
    ]
