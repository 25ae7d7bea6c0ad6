"""The benchmark of decode steps under methods that keep pages, at sizes that say nothing."""

from __future__ import annotations

import json
from pathlib import Path

import fast_steps
import pytest

from nsa_models.methods import _listed

SIZES = ["--layers", "2", "--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--mlp", "32"]
SIZES += ["--dtype", "float32", "--device", "cpu", "--steps", "3", "--repeats", "2"]
SMALL = "quest:48,page=4,dense_layers=none"


def test_steps_of_a_method_stand_beside_full_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(_listed.BACKENDS, "cpu", "torch")
    monkeypatch.setattr(fast_steps, "METHODS", (SMALL,))
    fast_steps.main(["--lengths", "130,160", "--rows", "1,2", "--json", str(tmp_path / "steps.json"), *SIZES])
    rows = json.loads((tmp_path / "steps.json").read_text())["rows"]
    assert [(row["tokens"], row["rows"], row["what"]) for row in rows] == [
        (tokens, count, what) for tokens in (130, 160) for count in (1, 2) for what in ("full", SMALL)
    ]
    for row in rows:
        assert row["spread"][0] <= row["ms"] <= row["spread"][1]
        if row["what"] == SMALL:
            assert row["density"] == pytest.approx(48 / row["tokens"], rel=0.1)
            # Of two layers' first step alone; 9 steps of full attention went before it.
            assert row["rebuilt"] == 2 * row["rows"] * (row["tokens"] + 9 + 1)
    assert f"| 160 | 2 | {SMALL} |" in capsys.readouterr().out
