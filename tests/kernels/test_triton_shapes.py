"""The triton backend against the oracle on random shapes, in the interpreter where there is no GPU."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import BlockGeometry, nsa_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module", autouse=True)
def _poisoned_allocations() -> Iterator[None]:
    """Memory that nobody has written holds NaN, or the largest integer."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)  # it is what makes the other one count
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warns)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@st.composite
def _draws(draw: st.DrawFn) -> tuple[BlockGeometry, dict]:
    stride = draw(st.sampled_from([1, 2, 4]))
    geometry = BlockGeometry(
        block=stride * draw(st.integers(1, 3)),
        stride=stride,
        select_block=stride * draw(st.integers(1, 4)),
        select_count=draw(st.integers(3, 6)),
        window=draw(st.integers(1, 40)),
    )
    batch = draw(st.integers(1, 2))
    queries = draw(st.integers(1, 20))
    starts = st.integers(0, 40)
    start = draw(st.one_of(starts, st.lists(starts, min_size=batch, max_size=batch)))
    lengths = None
    if draw(st.booleans()) or isinstance(start, list):
        low = start if isinstance(start, list) else [start] * batch
        lengths = [draw(st.integers(0, first + queries)) for first in low]
    return geometry, {
        "batch": batch,
        "queries": queries,
        "start": start,
        "lengths": lengths,
        "kv_heads": draw(st.integers(1, 2)),
        "group": draw(st.sampled_from([1, 2, 5])),
        "dim": draw(st.integers(1, 6)),
        "value_dim": draw(st.integers(1, 6)),
        "shared": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=_draws())
def test_agrees_with_the_oracle_on_any_shape(make_inputs: Callable, oracle: Callable, drawn: tuple) -> None:
    geometry, case = drawn
    inputs = make_inputs(geometry, **case, dtype=torch.float32)
    exact = replace(inputs, tensors=tuple(x.double() for x in inputs.tensors))
    expected, expected_blocks, expected_gradients = exact.run_with_gradients(oracle)
    out, blocks, gradients = inputs.to(DEVICE).run_with_gradients(partial(nsa_attention, backend="triton"))
    assert torch.equal(blocks.cpu(), expected_blocks)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-3, atol=1e-4)
