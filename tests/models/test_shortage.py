"""Which errors are a lack of memory, and how it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nsa_models import ModelLoadError, NSADecoderForCausalLM, load_model
from nsa_models.graphs import ReplayedStep
from nsa_models.shortage import is_out_of_memory, one_kind_of_shortage

# As CUDA, cuBLAS, Triton and the host's allocator worded it.
SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"
    ),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    ValueError("CUDA error: out of memory"),
    KeyError("input_ids"),
]


@pytest.mark.parametrize("error", SHORTAGES)
def test_a_shortage_is_one_class_whoever_met_it(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(torch.OutOfMemoryError) as told, one_kind_of_shortage():
        raise error
    assert str(told.value) == str(error)


@pytest.mark.parametrize("error", OTHERS)
def test_another_error_stays_what_it_is(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as told, one_kind_of_shortage():
        raise error
    assert told.value is error


def test_a_replayed_step_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    def step() -> torch.Tensor:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")

    with pytest.raises(torch.OutOfMemoryError, match="ALLOC_FAILED"):
        ReplayedStep(step, state=(torch.zeros(1),), enabled=False)()


def test_weights_without_room_are_the_loaders_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(NSADecoderForCausalLM, "to", full)
    with pytest.raises(ModelLoadError, match=r"cpu has no room for its weights, 0\.0 GiB: CUDA error: out"):
        load_model("zoo:twin-full-64k", device="cpu")
