"""A run's results are parsed once and compared once; a stored comparison is used while it is still theirs."""

import collections
import json
import shutil
from pathlib import Path

import pytest

import nsa_eval
from nsa_eval.comparison import Comparison, _of_run, _rows, compare, compare_run
from nsa_eval.report import render_report
from nsa_eval.results import _load, load_run


@pytest.fixture
def pages(monkeypatch):
    """The pages that were rendered; charts take seconds."""
    rendered = []

    def render(page, *, out, **_):
        rendered.append(page)
        Path(out).write_text("page")
        return out

    monkeypatch.setattr("nsa_reports.render", render)
    return rendered


@pytest.fixture
def calls(monkeypatch):
    """How often results were parsed (by file), models compared, and differences resampled."""
    counted = collections.Counter()

    def count(module, name, key):
        original = getattr(module, name)

        def wrapped(*arguments, **options):
            counted[key(*arguments)] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, wrapped)

    count(_load, "read_samples", lambda path: f"{path.parent.name}/{path.name.split('_20')[0]}")
    count(_of_run, "compare", lambda *_: "compare")
    count(_rows, "bootstrap", lambda *_: "bootstrap")
    return counted


@pytest.fixture
def written(tmp_path, write_model, scored):
    """A finished run of two models, with its comparison, as the runner leaves it."""
    directory = tmp_path / "run"
    for name, scores in (("a", [0.5, 0.25, 1.0, 0.0]), ("b", [0.5, 0.75, 1.0, 0.5])):
        write_model(directory, name, {"t": scored(scores)})
    settings = "compare: {baseline: b, resamples: 200, confidence: 0.9, seed: 3}\n"
    (directory / "run.yaml").write_text(
        "name: r\nmodels: [{name: a, path: pa}, {name: b, path: pb}]\n" + settings
    )
    comparison = compare_run(load_run(directory)).comparison
    (directory / "comparison.json").write_text(comparison.model_dump_json())
    return directory


def shown_differences(page):
    [result] = [section.data for section in page.sections if section.id == "result"]
    return [pair.difference for row in result.rows for pair in row.comparisons]


def test_a_run_parses_each_file_once_and_compares_once(tiny_config, tmp_path, pages, calls):
    result = nsa_eval.run(tiny_config(), output=tmp_path / "run", limit=2, progress=False)
    files = {
        f"{model}/samples_{task}" for model in ("one", "two") for task in ("needle_single", "needle_multikey")
    }
    assert {key: calls[key] for key in files} == dict.fromkeys(files, 1)
    assert calls["compare"] == 1
    in_a_run = calls["bootstrap"]
    calls.clear()
    compare(tmp_path / "run", resamples=200)
    assert in_a_run == calls["bootstrap"] > 0
    [page] = pages
    assert len(shown_differences(page)) == 2
    assert result.comparison.baseline == "two"


def test_a_finished_run_started_again_parses_and_compares_nothing(tiny_config, tmp_path, pages, calls):
    first = nsa_eval.run(tiny_config(), output=tmp_path / "run", limit=1, progress=False)
    calls.clear()
    again = nsa_eval.run(tiny_config(), output=tmp_path / "run", limit=1, progress=False)
    assert not calls
    assert len(pages) == 1
    assert again.comparison == first.comparison


def test_a_refusal_reaches_the_page_and_the_notes(tiny_config, tmp_path, pages, monkeypatch):
    def refuse(*_, **__):
        raise _of_run.ProtocolMismatchError(["one line", "another line"])

    monkeypatch.setattr(_of_run, "compare", refuse)
    result = nsa_eval.run(tiny_config(), output=tmp_path / "run", limit=1, progress=False)
    assert result.comparison is None
    assert result.notes[-1].startswith("not compared: These runs can't be compared")
    [page] = pages
    [notes] = [section.data.notes for section in page.sections if section.id == "notes"]
    [note] = [note for note in notes if note.title == "Models not compared"]
    assert note.details == ("one line", "another line")


def test_only_the_models_of_the_config_are_compared_and_shown(
    tiny_config, tmp_path, pages, write_model, scored
):
    nsa_eval.run(tiny_config(), output=tmp_path / "run", limit=1, progress=False)
    write_model(tmp_path / "run", "stray", {"t": scored([1.0])})
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "comparison.json").unlink()
    nsa_eval.run(tiny_config(), output=tmp_path / "run", limit=1, progress=False)
    assert [page.models for page in pages] == [("one", "two")] * 2


def test_what_is_handed_in_is_neither_read_nor_computed_again(written, pages, calls):
    run = load_run(written)
    comparison = compare(run, resamples=100)
    calls.clear()
    render_report(written, comparison=comparison, run=run)
    render_report(written, refusal=["asked differently"], run=run)
    assert not calls
    assert [len(shown_differences(page)) for page in pages] == [1, 0]


def test_a_report_uses_the_comparison_that_is_there(written, pages, calls):
    moved = shutil.copytree(written, written.parent / "moved")
    render_report(moved)
    assert calls["compare"] == 0
    assert shown_differences(pages[0]) == [-0.25]
    assert pages[0].confidence == 0.9


@pytest.mark.parametrize(
    "change", ["baseline", "resamples", "scores", "model", "audit", "damage", "undigested", "gone"]
)
def test_a_comparison_of_other_results_or_settings_is_made_anew(
    written, pages, calls, change, write_model, scored
):
    file, config = written / "comparison.json", written / "run.yaml"
    if change == "baseline":
        config.write_text(config.read_text().replace("baseline: b", "baseline: a"))
    elif change == "resamples":
        config.write_text(config.read_text().replace("resamples: 200", "resamples: 300"))
    elif change == "scores":
        write_model(written, "a", {"t": scored([0.5, 0.25, 1.0, 0.25])}, date="2026-03-02T00-00-00.000000")
    elif change == "model":
        write_model(written, "c", {"t": scored([0.0, 0.0, 0.0, 0.0])})
    elif change == "audit":
        (written / "audit.json").write_text(
            json.dumps({"a": [{"kind": "double_bos", "task": "t", "doc_id": 1}]})
        )
    elif change == "damage":
        file.write_text(file.read_text()[:100])
    elif change == "undigested":  # written before comparisons said what they were made of
        content = json.loads(file.read_text())
        for model in content["models"]:
            del model["digest"]
        file.write_text(json.dumps(content))
    else:
        file.unlink()
    render_report(written)
    assert calls["compare"] == 1
    expected = {"baseline": [0.25], "scores": [-0.1875], "model": [-0.25, -0.6875]}
    assert shown_differences(pages[0]) == expected.get(change, [-0.25])


def test_a_stored_comparison_equals_the_computed_one(written):
    stored = Comparison.model_validate_json((written / "comparison.json").read_text())
    run = load_run(written)
    assert compare_run(run, stored=written / "comparison.json").comparison == stored
    assert compare_run(run).comparison == stored
    assert all(len(model.digest) == 64 for model in stored.models)


def test_a_damaged_comparison_of_a_finished_run_is_made_again(tiny_config, tmp_path, pages):
    first = nsa_eval.run(tiny_config(), output=tmp_path / "run", limit=1, progress=False)
    file = tmp_path / "run" / "comparison.json"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    again = nsa_eval.run(tiny_config(), output=tmp_path / "run", limit=1, progress=False)
    assert again.comparison == first.comparison
    assert file.read_text() == whole
