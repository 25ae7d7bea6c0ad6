"""Methods on a GPU: the same choices as on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from nsa_models.methods import Method, attach

from .conftest import Rows, tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def padded_logits(model: PreTrainedModel, method: Method) -> tuple[list[torch.Tensor], list[int]]:
    """Logits of two rows of different lengths, read in pieces if they may be, and decoded; what was read."""
    many = [tokens(40, seed=2), tokens(29, seed=3)]
    with attach(model, method) as attached:
        rows, parts = Rows(model, 2, attached), []
        for start, end in ((0, 13), (13, -4)) if method.chunked_prefill else ((0, -4),):
            parts += rows.feed([row[start:end] for row in many])
        for step in range(4):
            parts += rows.feed([row[len(row) - 4 + step][None] for row in many], decode=True)
        return [part.cpu() for part in parts], [attached.reads.prefill.read, attached.reads.decode.read]


def test_gpu_reads_the_same_keys(model: PreTrainedModel, method: Method) -> None:
    logits, read = padded_logits(model, method)
    on_gpu, read_on_gpu = padded_logits(copy.deepcopy(model).to("cuda"), method)
    assert read == read_on_gpu
    for one, two in zip(logits, on_gpu, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)  # cos and sin are float32


def test_half_precision_runs(model: PreTrainedModel, method: Method) -> None:
    logits, _ = padded_logits(copy.deepcopy(model).to("cuda", torch.bfloat16), method)
    assert all(part.isfinite().all() for part in logits)
