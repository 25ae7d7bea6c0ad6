"""Finished runs become zoo folders that load, with the log and both curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import publish_twins
import pytest
import torch

from nsa_models import load_model
from nsa_models.train.loop import train
from nsa_models.train.recipe import Recipe


def test_two_runs_become_two_folders_of_the_zoo(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    recipe["test_every"] = 5
    runs = []
    for attention in ("full", "nsa"):
        runs.append(tmp_path / f"twin-{attention}-toy")
        made = {**recipe, "output": str(runs[-1]), "model": {**recipe["model"], "attention": attention}}
        train(Recipe.model_validate(made), log=lambda _: None)
    publish_twins.main([*map(str, runs), "--zoo", str(tmp_path / "zoo")])
    said = capsys.readouterr().out
    for run in runs:
        folder = tmp_path / "zoo" / run.name
        assert (folder / "train_log.jsonl").read_text() == (run / "log.jsonl").read_text()
        curves = (folder / "curves.svg").read_text(encoding="utf-8")
        assert all(other.name in curves for other in runs)
        ids = torch.arange(40)[None]
        published, trained = (
            load_model(str(path), device="cpu")(ids).logits for path in (folder, run / "model")
        )
        torch.testing.assert_close(published, trained)
        assert f"{run.name}: 15 steps, 0M tokens" in said
    assert said.count("| 1 | 256, 512 | 15 |") == 2


def test_a_run_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing: .*config\.json"):
        publish_twins.publish([tmp_path, tmp_path], tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
