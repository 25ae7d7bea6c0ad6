"""From run directories to what a report shows."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nsa_eval.comparison import compare
from nsa_eval.errors import UserError
from nsa_eval.material import Material
from nsa_eval.report import render_report
from nsa_eval.sections import build_page
from nsa_reports import to_html

GRID = {"length": [512] * 4 + [1024] * 4, "depth": [0.0, 0.0, 100.0, 100.0] * 2, "seed": list(range(8))}


def build_view(runs: Any, comparison: Any = None) -> SimpleNamespace:
    """What the sections of the page show, by section; nothing of one that isn't there."""
    page = build_page(Material(runs, comparison))
    data: dict[str, Any] = {section.id: section.data for section in page.sections}
    return SimpleNamespace(
        page=page,
        headline=data["result"].headline,
        rows=data["result"].rows,
        heatmaps=data["heatmaps"].groups if "heatmaps" in data else (),
        tasks=data["tasks"].tasks if "tasks" in data else (),
        audit=data["notes"].notes,
        models=data["provenance"].models,
        provenance=data["provenance"].origin,
    )


@pytest.fixture
def run(tmp_path: Path, write_model: Any, scored: Any) -> Path:
    """Two models on a 2 x 2 grid with two samples a cell, and on a task without a grid; as nsa-eval writes
    it."""
    config = {"metadata": {"version": 1.0, "protocol": "classic", "summary": "one needle"}}
    for name, scores in (("nsa", [1, 1, 0, 0, 1, 1, 1, 0]), ("dense", [1.0] * 8)):
        samples = scored(
            [float(s) for s in scores], **GRID, needle=["The number is 7."] * 8, outputs=[["7"]] * 8
        )
        for sample in samples:
            sample["resps"] = [[f"{name} says <script>alert(1)</script>"]]
        write_model(
            tmp_path, name, {"needle_single": samples, "qa": scored([0.5, 0.25], "f1")}, config=config,
            max_length=2048, lm_eval_version="0.4.13",
        )  # fmt: skip
    (tmp_path / "run.yaml").write_text(
        "name: quick\nseed: [3, 1, 1, 1]\n"
        "models: [{name: nsa, path: 'zoo:n'}, {name: dense, path: 'zoo:d'}]\n"
        "compare: {baseline: dense, resamples: 200}\nengine: {truncation: left}\nreport: {title: My report}\n"
    )
    env = {
        "command": ["nsa-eval", "run", "a b.yaml"],
        "versions": {"torch": "2.13.0"},
        "git": {"commit": "abc", "changed": False},
        "machine": {"cpu": "Some CPU", "gpus": [{"name": "H", "memory_gib": 80}], "memory_gib": 16.0},
        "started": "2026-03-01",
    }
    (tmp_path / "env.json").write_text(json.dumps(env))
    cut = {"kind": "truncated", "task": "needle_single", "doc_id": 2, "before": 90, "after": 64}
    (tmp_path / "audit.json").write_text(json.dumps({"nsa": [cut], "dense": [cut]}))
    return tmp_path


def test_cells_are_means_counts_and_intervals_of_each_model_and_of_the_difference(run: Path) -> None:
    view = build_view(run, compare(run, resamples=200))
    (group,) = view.heatmaps
    assert (group.lengths, group.depths, group.protocol, group.description) == (
        (512, 1024),
        (0.0, 100.0),
        "classic",
        "one needle",
    )
    nsa, dense = group.maps
    cells = {(cell.length, cell.depth): cell for cell in nsa.cells}
    assert {place: cell.value for place, cell in cells.items()} == {
        (512, 0.0): 1.0,
        (512, 100.0): 0.0,
        (1024, 0.0): 1.0,
        (1024, 100.0): 0.5,
    }
    assert all(cell.n == 2 for cell in cells.values())
    # Wilson of 2 of 2: low end n / (n + z^2) = 2 / 5.841459.
    assert cells[512, 0.0].low == pytest.approx(2 / 5.841459, abs=1e-6)
    assert {cell.value for cell in dense.cells} == {1.0}
    (difference,) = group.differences
    values = {(cell.length, cell.depth): cell.value for cell in difference.cells}
    assert values == {(512, 0.0): 0.0, (512, 100.0): -1.0, (1024, 0.0): 0.0, (1024, 100.0): -0.5}
    assert (difference.candidate, difference.baseline) == ("nsa", "dense")


def test_rows_repeat_the_comparison(run: Path) -> None:
    comparison = compare(run, resamples=200)
    view = build_view(run, comparison)
    needle, qa = view.rows
    assert [score.value for score in needle.scores if score] == [0.625, 1.0]
    (shown,) = needle.comparisons
    source = comparison.rows[0]
    assert (shown.difference, shown.p_adjusted, shown.test) == (-0.375, source.p_adjusted, "exact McNemar")
    assert shown.significant is False
    assert qa.comparisons[0].test == "paired permutation"
    by_length = view.heatmaps[0].by_length
    assert [row.length for row in by_length] == [512, 1024]
    assert [row.comparisons[0].difference for row in by_length] == [-0.5, -0.25]
    # The other task is a section with its samples; the grid's samples are in the grid.
    assert [section.task for section in view.tasks] == ["qa"]
    assert len(view.tasks[0].samples) == 2
    assert view.headline == "nsa against dense: not distinguishable on 2 tasks."


def test_samples_stand_side_by_side_with_what_was_done_to_them(run: Path) -> None:
    samples = build_view(run, compare(run, resamples=200)).heatmaps[0].samples
    assert len(samples) == 8
    third = samples[2]
    assert [reply.model for reply in third.replies] == ["nsa", "dense"]
    assert [reply.score for reply in third.replies] == [0.0, 1.0]
    assert third.replies[0].text == "nsa says <script>alert(1)</script>"
    assert third.replies[0].notes == ("truncated: 90 to 64 tokens",)
    assert (third.needle, third.expected, third.seed, third.prompt_end) == (
        "The number is 7.",
        ("7",),
        2,
        "Question 2?",
    )


def test_all_replies_of_a_document_are_shown_with_what_was_taken_from_them(
    tmp_path: Path, write_model: Any, sample_line: Any
) -> None:
    """GSM8K's two filters on a document that was asked twice."""
    resps = [["so 41", "#### 42"]]
    lines = [
        sample_line({"id": 0}, {"exact_match": 1.0}, resps=resps, filtered_resps=["42"], filter="flexible"),
        sample_line(
            {"id": 0}, {"exact_match": 0.0}, resps=resps, filtered_resps=["[invalid]"], filter="strict"
        ),
    ]
    write_model(tmp_path, "m", {"gsm8k": lines})
    (reply,) = build_view(tmp_path).tasks[0].samples[0].replies
    assert (reply.text, reply.more) == ("so 41", ("#### 42",))
    assert [(found.filter, found.texts, found.score) for found in reply.extracts] == [
        ("flexible", ("42",), 1.0),
        ("strict", ("[invalid]",), 0.0),
    ]
    html = to_html(build_view(tmp_path).page)
    data = json.loads(re.search(r'id="report-data">(.*?)</script>', html, re.S)[1])
    (entry,) = data["samples"]["t0"]["all"]["shown"][0]["replies"]
    assert entry["more"] == ["#### 42"]
    assert entry["extracts"][1] == {"filter": "strict", "texts": ["[invalid]"], "score": 0.0}


def test_failed_needle_replies_are_told_apart_and_counted(
    tmp_path: Path, write_model: Any, sample_line: Any
) -> None:
    reasons = ["another needle's value", "", "nothing", "another needle's value"]
    lines = [
        sample_line(
            {"id": i, "length": 512, "depth": 50.0 * (i % 2), **({"reasons": [reason]} if reason else {})},
            {"score": 0.0 if reason else 1.0},
        )
        for i, reason in enumerate(reasons)
    ]
    write_model(tmp_path, "m", {"needle": lines})
    view = build_view(tmp_path)
    assert [sample.replies[0].reasons for sample in view.heatmaps[0].samples] == [
        (reason,) if reason else () for reason in reasons
    ]
    html = to_html(view.page)
    assert "3 replies not fully right: another needle&#39;s value (2), nothing (1)" in html


def test_a_verdict_on_three_documents_says_that_they_are_few(
    tmp_path: Path, write_model: Any, scored: Any
) -> None:
    write_model(tmp_path, "a", {"t": scored([1.0] * 3), "u": scored([1.0] * 24)})
    write_model(tmp_path, "b", {"t": scored([0.0] * 3), "u": scored([1.0] * 24)})
    view = build_view(tmp_path, compare(tmp_path, baseline="b", resamples=100))
    assert view.headline == (
        "a against b: not distinguishable on 1 task, not distinguishable (too few documents) on 1 other task."
    )
    assert ">not distinguishable (too few documents)</span>" in to_html(view.page)


def test_the_sentence_is_short_with_many_models(tmp_path: Path, write_model: Any, scored: Any) -> None:
    for index in range(6):
        scores = [1.0] * 30 if index else [0.0] * 30
        write_model(
            tmp_path, f"a-rather-long-name-of-model-{index}", {"t": scored(scores), "u": scored(scores)}
        )
    view = build_view(tmp_path, compare(tmp_path, baseline="a-rather-long-name-of-model-1", resamples=100))
    assert view.headline == (
        "5 models against a-rather-long-name-of-model-1 on 2 tasks, 10 comparisons: 2 worse, 8 not "
        "distinguishable."
    )
    assert build_view(tmp_path).headline == "6 models on 2 tasks, 60 documents."


def test_audit_and_provenance(run: Path) -> None:
    view = build_view(run)
    counts = {note.title: (note.count, note.total) for note in view.audit}
    assert counts["Prompts cut to fit the model's length"] == (2, 20)
    assert counts["Prompts that brought their own beginning-of-sequence token"] == (0, 20)
    assert view.provenance.command == "nsa-eval run 'a b.yaml'"
    assert view.provenance.seed == 3
    assert view.provenance.git_commit == "abc"
    assert view.provenance.machine == {"cpu": "Some CPU", "GPUs": "H (80 GiB)", "memory": "16 GiB"}
    assert view.provenance.versions == {"torch": "2.13.0", "lm-eval": "0.4.13"}
    assert "truncation: left" in view.provenance.config
    assert [(card.name, card.path, card.max_length) for card in view.models] == [
        ("nsa", "zoo:n", 2048),
        ("dense", "zoo:d", 2048),
    ]


def test_one_model_needs_no_comparison(run: Path) -> None:
    view = build_view(f"{run}:nsa")
    assert view.rows[0].comparisons == ()
    assert view.rows[0].scores[0] is not None
    assert view.heatmaps[0].differences == ()
    assert view.headline == "nsa on 2 tasks, 10 documents."


def test_models_with_other_tasks_leave_blanks(run: Path, write_model: Any, scored: Any) -> None:
    write_model(run, "third", {"extra": scored([1.0, 0.0])})
    view = build_view(run)
    assert [row.task for row in view.rows] == ["needle_single", "qa", "extra"]
    assert view.rows[2].scores[:2] == (None, None)
    assert view.rows[0].scores[2] is None
    assert view.heatmaps[0].maps[2].cells == ()


def test_runs_of_lm_eval_say_that_nothing_was_recorded(tmp_path: Path, write_model: Any, scored: Any) -> None:
    write_model(tmp_path, "m", {"t": scored([1.0, 0.0])})
    (note,) = build_view(tmp_path).audit
    assert "not recorded" in note.title
    assert note.details == ("m",)


def test_perplexity_is_no_percentage_and_has_a_colour_scale_of_its_own(
    tmp_path: Path, write_model: Any, scored: Any
) -> None:
    write_model(
        tmp_path, "m", {"t": scored([3.0, 4.0, 5.0, 6.0], "perplexity", length=[512] * 4, depth=[0.0] * 4)}
    )
    view = build_view(tmp_path)
    assert (view.rows[0].percent, view.rows[0].higher_is_better) == (False, False)
    [group] = view.heatmaps
    assert (group.percent, group.unit, group.higher_is_better) == (False, "perplexity", False)
    html = to_html(view.page)
    assert re.search(r"perplexity <span>0\.00</span><span[^>]*></span><span>5\.00</span>", html)
    assert ">4.50</td>" in html
    assert "450" not in html


def test_report_is_written_where_asked_and_replies_stay_text(run: Path) -> None:
    out = render_report(run, out=run / "page" / "report.html")
    page = out.read_text(encoding="utf-8")
    assert out == run / "page" / "report.html"
    assert "<title>My report" in page
    assert "<script>alert(1)" not in page
    assert "nsa says" in page
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_a_runs_own_report_has_figures_for_papers_beside_it(run: Path) -> None:
    assert render_report(run) == run / "report.html"
    names = {path.name for path in (run / "figures").iterdir()}
    assert {"needle_single.png", "needle_single-nsa.svg", "needle_single-nsa-minus-dense.png"} <= names
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "figures/" not in page
    assert 'download="needle_single.pdf"' in page


def test_reports_of_two_runs_in_one_folder_are_two_files(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages"
    render_report(run, out=out / "a.html")
    first = (out / "a.html").read_bytes()
    render_report(f"{run}:nsa", out=out / "b.html")
    assert sorted(path.name for path in out.iterdir()) == ["a.html", "b.html"]
    assert (out / "a.html").read_bytes() == first


def test_report_says_why_models_were_not_compared(run: Path, write_model: Any, scored: Any) -> None:
    write_model(run, "dense", {"needle_single": scored([1.0] * 8, **GRID)}, date="2026-03-02T00-00-00.000000")
    page = render_report(run).read_text(encoding="utf-8")
    assert "Models not compared" in page
    assert "documents differ" in page


def test_report_of_nothing_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        render_report(tmp_path)


def test_unwritable_report_is_one_message(run: Path) -> None:
    (run / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        render_report(run, out=run / "file" / "report.html")


def test_every_link_of_the_navigation_leads_somewhere(run: Path) -> None:
    html = to_html(build_view(run, compare(run, resamples=200)).page)
    links = re.findall(r'<li><a href="#([^"]+)">([^<]+)</a>', html)
    titles = [title for _, title in links]
    places = [titles.index(title) for title in ("needle_single", "qa", "Notes", "Provenance")]
    assert places == sorted(places)
    assert "Result" not in titles  # the section that the links stand in
    assert all(f'id="{target}"' in html for target, _ in links)
