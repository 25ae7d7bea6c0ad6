"""What came of a series of runs, as a page's table and picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import training_series

Plain = dict[str, Any]


def made_up(attention: str, width: int, losses: list[float]) -> Plain:
    """A run's result by hand."""
    tokens = [1_000_000 * step for step in range(1, len(losses) + 1)]
    test = {"text": losses[-1], "answer": 0.5, "right": 128, "questions": 256}
    return {
        "recipe": {
            "model": {"attention": attention, "hidden_size": width},
            "name": "x",
            "output": "y",
            "seed": 0,
        },
        "machine": {"device": "a GPU", "torch": "2.11", "triton": None},
        "parameters": 1_234_567,
        "steps": len(losses),
        "tokens": tokens[-1],
        "seconds": 7.0,
        "tokens_per_second": 50_000,
        "curve": {"tokens": tokens, "loss": losses, "answer_loss": [loss / 2 for loss in losses]},
        "held_out": {"1024": test, "4096": {**test, "right": 0}},
    }


def test_a_page_gets_table_and_picture_and_keeps_the_rest(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    losses = [8.0 - step / 20 for step in range(100)]
    runs = {
        "nsa-2": made_up("nsa", 2, losses),
        "full-2": made_up("full", 2, [loss + 0.25 for loss in losses]),
    }
    file, page = tmp_path / "ladder.json", tmp_path / "page.md"
    file.write_text(json.dumps({"series": "ladder", "missing": [], "runs": runs}))
    page.write_text("# Above\n<!-- ladder -->\nold\n<!-- /ladder -->\nbelow\n")
    for _ in range(2):  # again changes nothing
        training_series.main([str(file), "--page", str(page)])
        text = page.read_text()
        assert text.startswith("# Above\n<!-- ladder -->\n2 runs of 100 steps, 100M tokens, seed 0, on a GPU")
        assert text.endswith("](ladder.svg)\n<!-- /ladder -->\nbelow\n")
        assert (
            "| nsa-2 | 1.2M | 3.050, 3.050 | 0.5, 0.5 | never | 50.0 (43.9 to 56.1) | 0.0 (0.0 to 1.5) |"
            in text
        )
        assert "old" not in text
    picture = (tmp_path / "ladder.svg").read_bytes()
    training_series.main([str(file), "--page", str(page)])
    assert (tmp_path / "ladder.svg").read_bytes() == picture
    apart = training_series.differences(runs["nsa-2"], runs["full-2"], "loss")
    assert len(apart) == training_series.BINS
    assert [value for _, value in apart] == pytest.approx([-0.25] * len(apart))


@pytest.mark.parametrize(
    ("answers", "after"),
    [
        ([2.0, 0.9, 1.5, 0.8, 0.1], 4_000_000),  # a single good step before is none
        ([2.0, 0.5, 0.4, 1.0], None),
        ([0.5, 0.4], 1_000_000),
    ],
)
def test_answers_are_found_from_where_their_loss_stays_low(answers: list[float], after: int | None) -> None:
    run = made_up("nsa", 2, [2 * loss for loss in answers])
    assert training_series.found_after(run) == after


def test_runs_that_are_no_twins_are_compared_with_the_first(tmp_path: Path) -> None:
    runs = {name: made_up("nsa", width, [3.0, 2.0]) for width, name in enumerate(("a", "b", "c"))}
    assert training_series.references(runs) == {"b": "a", "c": "a"}
    pytest.importorskip("matplotlib")
    training_series.draw(runs, tmp_path / "drawn.svg", "three")
    assert (tmp_path / "drawn.svg").read_text().count("<svg") == 1


def test_an_unfinished_series_has_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"series": "x", "missing": ["b"], "runs": {"a": {}}}))
    with pytest.raises(SystemExit) as left:
        training_series.main([str(file)])
    assert left.value.code == 2
    assert "not all runs are done, b missing" in capsys.readouterr().err


def test_without_a_page_the_table_alone_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ladder.json"
    runs = {"nsa-2": made_up("nsa", 2, [8.0] * 100)}
    file.write_text(json.dumps({"series": "ladder", "missing": [], "runs": runs}))
    training_series.main([str(file)])
    said = capsys.readouterr().out
    assert "| nsa-2 |" in said
    assert ".svg" not in said
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_no_json_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ladder.json"
    file.write_text("{")
    with pytest.raises(SystemExit) as ended:
        training_series.main([str(file)])
    assert ended.value.code == 2
    assert "ladder.json: not JSON" in capsys.readouterr().err
