"""The benchmark's stages fit the kernels: each runs, and is counted."""

import os
from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import BlockGeometry
from nsa_kernels.bench import Settings
from nsa_kernels.bench.counts import Counts
from nsa_kernels.bench.sparse import Attention
from nsa_kernels.bench.stages import Stages
from nsa_kernels.triton import configs
from nsa_kernels.triton.masked import conditions

SETTINGS = Settings(
    lengths=(16,),
    decode_lengths=(16,),
    heads=2,
    kv_heads=1,
    head_dim=16,
    value_dim=16,
    geometry=BlockGeometry(block=4, stride=2, select_block=4, select_count=3, window=6),
    dtype="float32",
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_every_stage_runs_and_has_its_counts() -> None:
    stages = Stages(Attention(16, SETTINGS, DEVICE))
    ran = [(part, name) for part, name, _ in stages]
    assert not stages.notes
    counts = Counts(16, SETTINGS)
    assert {name for part, name in ran if part == "fwd"} == set(counts.fwd_stages())
    assert {name for part, name in ran if part == "bwd"} == set(counts.bwd_stages())


@pytest.mark.parametrize("tokens", [12, 16], ids=["everything is chosen", "some are"])
def test_the_masked_stages_run_and_have_their_counts(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(conditions, "ANY_DTYPE", True)
    rates = {"GATHER_TBS": 1, "FORWARD_TFLOPS": 1000, "BACKWARD_TFLOPS": 1000, "LISTS_TFLOPS": 1}
    monkeypatch.setattr(configs, "MASKED", {configs.table_name(DEVICE): rates})
    geometry = BlockGeometry(block=4, stride=2, select_block=16, select_count=4, window=6)
    settings = replace(SETTINGS, lengths=(5 * tokens,), tokens=10 * tokens, geometry=geometry)
    stages = Stages(Attention(5 * tokens, settings, DEVICE))
    ran = [(part, name) for part, name, _ in stages]
    assert not stages.notes
    counts = Counts(5 * tokens, settings)
    assert {name for part, name in ran if part == "fwd"} == set(counts.masked_fwd_stages())
    assert {name for part, name in ran if part == "bwd"} - {"compression"} == set(counts.masked_bwd_stages())


def test_a_stage_that_fails_takes_only_those_that_need_it_along(monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of shared memory\nand more")

    monkeypatch.setattr("nsa_kernels.triton.prefill.window_and_forced.window_and_forced_forward", broken)
    monkeypatch.delattr("nsa_kernels.triton.backward.gates.gate_backward")
    stages = Stages(Attention(16, SETTINGS, DEVICE))
    ran = [f"{part} {name}" for part, name, _ in stages]
    assert ran == [
        "fwd compression",
        "fwd compressed attention",
        "fwd scores + top-n",
        "bwd compression",
    ]
    assert stages.notes[0] == "stage fwd window + forced blocks: failed: RuntimeError: out of shared memory"
    assert "stage fwd selected attention: skipped, it needs fwd window + forced blocks" in stages.notes
    assert any("bwd gates: not in this version" in note for note in stages.notes)
