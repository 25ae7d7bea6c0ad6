"""Methods on a GPU: the same choices as on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.methods import Method, QueryBlock, attach

from .conftest import Rows, tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

STEPS = 4
PROMPTS = (36, 25)
"""Tokens of two rows, which are decoded for `STEPS` more."""


@pytest.fixture
def choices(method: Method, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Each answer of the method, on the CPU: which keys of those that a token sees it reads.

    Padding is left out: its keys are equal, and which of them is read is nobody's matter.
    """
    found: list[Tensor] = []
    select = type(method).select

    def noted(self: Method, block: QueryBlock) -> Tensor:
        keep = select(self, block)
        read = (keep & block.visible).cpu()
        if len(read) == len(PROMPTS) and read.shape[2] > 1:
            real = block.positions.cpu() < torch.tensor(PROMPTS)[:, None]
            read &= real[:, None, :, None]
        found.append(read)
        return keep

    monkeypatch.setattr(type(method), "select", noted)
    return found


def padded_logits(model: PreTrainedModel, method: Method) -> tuple[list[Tensor], list[int]]:
    """Logits of two rows of different lengths, read in pieces if they may be, and decoded; what was read."""
    many = [tokens(count + STEPS, seed=2 + row) for row, count in enumerate(PROMPTS)]
    with attach(model, method) as attached:
        rows, parts = Rows(model, 2, attached), []
        for start, end in ((0, 13), (13, -STEPS)) if method.chunked_prefill else ((0, -STEPS),):
            parts += rows.feed([row[start:end] for row in many])
        for step in range(STEPS):
            parts += rows.feed([row[len(row) - STEPS + step][None] for row in many], decode=True)
        return [part.cpu() for part in parts], [attached.reads.prefill.read, attached.reads.decode.read]


def test_gpu_reads_the_same_keys(model: PreTrainedModel, method: Method, choices: list[Tensor]) -> None:
    """Key for key; logits as far as angles and norms go, which are float32 whatever the model is.

    One last bit of theirs moves these logits, of up to 6, by up to 2e-5.
    """
    logits, read = padded_logits(model, method)
    asked = len(choices)
    assert asked
    on_gpu, read_on_gpu = padded_logits(copy.deepcopy(model).to("cuda"), method)
    assert len(choices) == 2 * asked
    assert all(map(torch.equal, choices[:asked], choices[asked:]))
    assert read == read_on_gpu
    for one, two in zip(logits, on_gpu, strict=True):
        torch.testing.assert_close(one, two, rtol=5e-5, atol=5e-5)


def test_half_precision_runs(model: PreTrainedModel, method: Method) -> None:
    logits, _ = padded_logits(copy.deepcopy(model).to("cuda", torch.bfloat16), method)
    assert all(part.isfinite().all() for part in logits)
