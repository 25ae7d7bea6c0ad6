"""Perplexity by position and a needle's likelihood in a whole run of the bundled twins."""

import json

import pytest

import nsa_eval
from nsa_tasks._random import Draw
from nsa_tasks.haystack import generate_text


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("books")
    lines = [
        json.dumps({"id": f"b{seed}", "text": generate_text(Draw("run", seed), 1500)}) for seed in range(3)
    ]
    (folder / "books.jsonl").write_text("\n".join(lines))
    twins = [
        {"name": name, "path": f"zoo:twin-{kind}-64k"} for name, kind in (("nsa", "nsa"), ("dense", "full"))
    ]
    return {
        "models": twins,
        "tasks": [
            {
                "task": "ppl_by_position",
                "source": f"text:{folder / 'books.jsonl'}",
                "buckets": [32, 64, 128],
                "documents": "all",
            },
            {"task": "needle_single_nll", "lengths": [256], "depths": 2, "samples": 1},
        ],
        "compare": {"baseline": "dense", "resamples": 200},
    }


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    return nsa_eval.run(
        nsa_eval.load_config(config), output=tmp_path_factory.mktemp("run") / "r", progress=False
    )


def test_documents_are_the_same_in_every_bucket_and_for_both(finished):
    by_model = [
        [json.loads(line) for path in (finished.output / name).glob("samples_ppl_*") for line in path.open()]
        for name in ("nsa", "dense")
    ]
    for samples in by_model:
        assert [sample["doc"]["id"] for sample in samples] == ["b0", "b1", "b2"]
        for sample in samples:
            assert len(sample["resps"]) == 3
            assert {f"nll@{end}" for end in (32, 64, 128)} <= set(sample["metrics"])
    assert [s["doc_hash"] for s in by_model[0]] == [s["doc_hash"] for s in by_model[1]]


def test_the_report_has_curves_and_a_map_of_nats(finished):
    page = (finished.output / "report.html").read_text()
    _, *after = page.split('class="positions">')
    assert [part.split("</section>")[0].count('<figure class="chart">') for part in after] == [4]
    assert "nll (nats a token) by context length" in page
    names = {path.name for path in (finished.output / "figures").iterdir()}
    assert {"ppl_by_position-nll.svg", "needle_single_nll.svg"} <= names


def test_every_bucket_is_compared_on_all_documents(finished):
    rows = json.loads((finished.output / "comparison.json").read_text())["rows"]
    row = next(row for row in rows if (row["task"], row["metric"]) == ("ppl_by_position", "nll"))
    assert [(sub["length"], sub["n"]) for sub in row["lengths"]] == [(32, 3), (64, 3), (128, 3)]
    assert not any("@" in row["metric"] for row in rows)


def test_a_second_run_asks_the_models_nothing(finished, config, tmp_path, monkeypatch):
    again = tmp_path / "r"
    again.mkdir()
    (again / "store").mkdir()
    for file in (finished.output / "store").glob("*.jsonl"):
        (again / "store" / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("nsa_eval.engine._reader.Reader.read", None)
    monkeypatch.setattr("nsa_eval.report.render_report", lambda directory, *, out, **_: None)
    run = nsa_eval.run(nsa_eval.load_config(config), output=again, progress=False)
    for name in ("nsa", "dense"):
        files = [
            next((folder / name).glob("samples_ppl_*")).read_text()
            for folder in (finished.output, run.output)
        ]
        assert files[0] == files[1]
