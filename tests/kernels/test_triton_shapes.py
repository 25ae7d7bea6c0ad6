"""The triton backend against the oracle on random shapes, in the interpreter where there is no GPU."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import nsa_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.usefixtures("poisoned_allocations")
def test_agrees_with_the_oracle_on_any_shape(
    make_inputs: Callable, oracle: Callable, shapes: Callable, data: st.DataObject
) -> None:
    geometry, case = data.draw(shapes(20))
    inputs = make_inputs(geometry, **case, dtype=torch.float32)
    exact = replace(inputs, tensors=tuple(x.double() for x in inputs.tensors))
    expected, expected_blocks, expected_gradients = exact.run_with_gradients(oracle)
    out, blocks, gradients = inputs.to(DEVICE).run_with_gradients(partial(nsa_attention, backend="triton"))
    assert torch.equal(blocks.cpu(), expected_blocks)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-3, atol=1e-4)
