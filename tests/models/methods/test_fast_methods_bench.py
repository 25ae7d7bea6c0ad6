"""The benchmark of `fast` methods on a model, at sizes that say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fast_methods
import pytest

from nsa_models.methods import _listed

SIZES = ["--lengths", "130,160", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--head-dim", "16"]
SIZES += ["--mlp", "32", "--dtype", "float32", "--device", "cpu", "--repeats", "1"]
SMALL = (
    "block-sparse:48,block=16",
    "vertical-slash:12,vertical=8,first=2,local=3,last=9,reading=kernel,block=16",
    "moba:48,chunk=16",
    "flexprefill:least=20,block=16",
    "xattention:tau=0.4,stride=4,block=16",
    "pbs-attn:tau=0.4,block=16,segment=32",
    "infllm:80,first=16,local=32,block=16,representatives=2,unit=24",
    "power-attention:window=2,block=16",
    "s2-attention:local=2,stride=3,block=16",
    "seer-attention-prefill:ratio=0.2,block=16",
)


def measured(folder: Path, *more: str) -> dict[str, Any]:
    fast_methods.main([*SIZES, "--json", str(folder / "fast.json"), *more])
    found: dict[str, Any] = json.loads((folder / "fast.json").read_text())
    return found


def test_every_method_by_default_has_a_row_beside_full_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [spec.partition(":")[0] for spec in SMALL]
    assert set(names) == {spec.partition(":")[0] for spec in fast_methods.METHODS}
    monkeypatch.setitem(_listed.BACKENDS, "cpu", "torch")
    monkeypatch.setattr(fast_methods, "METHODS", SMALL)
    found = measured(tmp_path)
    assert found["notes"] == []
    assert [row["tokens"] for row in found["rows"]] == [160] * (2 + len(SMALL)) + [130] * (2 + len(SMALL))
    assert [row["what"] for row in found["rows"][:2]] == ["rest", "full"]
    for row in found["rows"]:
        assert row["ms"] > 0
        if row["what"] in SMALL:
            assert 0 < row["density"] < 1
            assert row["ratio"] == pytest.approx(full_of(found, row["tokens"]) / row["ms"])
    printed = capsys.readouterr().out
    assert all(f"| {spec} |" in printed for spec in SMALL)


def full_of(found: dict[str, Any], tokens: int) -> float:
    (ms,) = (row["ms"] for row in found["rows"] if row["what"] == "full" and row["tokens"] == tokens)
    return float(ms)


def test_what_cannot_run_here_is_a_note(tmp_path: Path) -> None:
    found = measured(tmp_path, "--method", "moba:48,chunk=16")
    assert [row["what"] for row in found["rows"]] == ["rest", "full"] * 2
    assert "moba:48,chunk=16 at 160: not measured: moba: fast needs a GPU" in found["notes"][0]


def test_what_would_begin_too_late_is_left_out(tmp_path: Path) -> None:
    found = measured(tmp_path, "--seconds", "0")
    assert found["rows"] == []
    assert "rest at 160: left out, 0 s were over" in found["notes"]
