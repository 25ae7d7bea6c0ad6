"""The masked kernels against the oracle, and when they serve; in the interpreter where there is no GPU."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import BlockGeometry, nsa_attention
from nsa_kernels.triton import configs, function
from nsa_kernels.triton.masked import conditions
from nsa_kernels.triton.tiles import Grid
from nsa_kernels.types import Caches

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALWAYS = {"GATHER_TBS": 1, "FORWARD_TFLOPS": 1000, "BACKWARD_TFLOPS": 1000, "LISTS_TFLOPS": 1}
FORWARD = {**ALWAYS, "LISTS_TFLOPS": 1_000_000}
PAPER = BlockGeometry()
FEW = BlockGeometry(block=8, stride=4, select_block=16, select_count=4, window=12)
MORE = BlockGeometry(block=8, stride=8, select_block=16, select_count=4, window=40)
REACHED = BlockGeometry(block=8, stride=4, select_block=16, select_count=7, window=21)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Lets the rates of this device be set: they decide which path is taken."""
    monkeypatch.setattr(conditions, "ANY_DTYPE", True)
    name = configs.table_name(DEVICE)
    return lambda given: monkeypatch.setattr(configs, "MASKED", {name: given})


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The masked passes that have run."""
    ran: list[str] = []

    def noted(name: str) -> None:
        real = getattr(function, name)
        monkeypatch.setattr(function, name, lambda *args, **kwargs: ran.append(name) or real(*args, **kwargs))

    noted("masked_forward")
    noted("masked_backward")
    return ran


def one_kv(attention: Callable, *tensors: Tensor, **options: object) -> object:
    """The attention with the selected branch's keys and values for the window: the very same tensors."""
    return attention(*tensors[:5], tensors[3], tensors[4], tensors[7], **options)


CASES = {
    "group of 4, few chosen": (FEW, {"queries": 67, "group": 4, "batch": 1, "kv_heads": 1}, True),
    "one head a group": (FEW, {"queries": 70, "group": 1, "value_dim": 32, "batch": 1, "kv_heads": 1}, False),
    "odd group, ragged": (
        MORE,
        {"queries": 20, "start": 50, "group": 3, "lengths": [64, 70], "kv_heads": 1},
        True,
    ),
    "against a cache": (FEW, {"queries": 18, "start": 60, "group": 2, "batch": 1}, False),
    "rows that start apart": (
        FEW,
        {"queries": 20, "start": [0, 55], "group": 4, "lengths": [13, 74], "kv_heads": 1},
        True,
    ),
    "more than 32 blocks": (FEW, {"queries": 6, "start": 560, "group": 4, "batch": 1, "kv_heads": 1}, True),
    "8 heads": (MORE, {"queries": 15, "start": 55, "group": 8, "kv_heads": 1, "batch": 1}, False),
    "everything chosen": (
        REACHED,
        {"queries": 45, "start": 20, "group": 4, "batch": 1, "kv_heads": 1},
        False,
    ),
    "everything chosen, one K/V": (REACHED, {"queries": 65, "group": 4, "batch": 1, "kv_heads": 1}, True),
    "shorter than a block": (REACHED, {"queries": 5, "group": 4, "batch": 1}, True),
}
"""Geometry, sizes, and whether window and selected branch have the same keys and values."""


@pytest.mark.usefixtures("poisoned_allocations")
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_oracle(
    make_inputs: Callable, oracle: Callable, rates: Callable, passes: list[str], case: str
) -> None:
    geometry, sizes, shared = CASES[case]
    inputs = make_inputs(geometry, **{"dim": 16, **sizes}, dtype=torch.float32)
    ours = partial(nsa_attention, backend="triton")
    if shared:
        oracle, ours = partial(one_kv, oracle), partial(one_kv, ours)
    expected, expected_blocks, expected_gradients = inputs.run_with_gradients(oracle)
    rates(ALWAYS)
    out, blocks, gradients = inputs.to(DEVICE).run_with_gradients(ours)
    assert passes == ["masked_forward", "masked_backward"]
    assert torch.equal(blocks.cpu(), expected_blocks)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("poisoned_allocations")
def test_ties_go_to_the_lower_block_as_everywhere(
    make_inputs: Callable, oracle: Callable, rates: Callable, passes: list[str]
) -> None:
    inputs = make_inputs(FEW, queries=25, start=60, group=4, kv_heads=1, batch=1, dim=16, dtype=torch.float32)
    tensors = (*inputs.tensors[:1], torch.zeros_like(inputs.tensors[1]), *inputs.tensors[2:])
    inputs = replace(inputs, tensors=tensors)
    expected, expected_blocks = inputs.run(oracle)
    rates(ALWAYS)
    with torch.no_grad():
        out, blocks = inputs.to(DEVICE).run(partial(nsa_attention, backend="triton"))
    assert passes == ["masked_forward"]
    assert torch.equal(blocks.cpu(), expected_blocks)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_the_backward_by_lists_goes_on_from_the_masked_forward(
    make_inputs: Callable, oracle: Callable, rates: Callable, passes: list[str]
) -> None:
    inputs = make_inputs(FEW, queries=20, start=50, group=4, kv_heads=1, batch=1, dim=16, dtype=torch.float32)
    *_, expected = inputs.run_with_gradients(oracle)
    rates(FORWARD)
    *_, gradients = inputs.to(DEVICE).run_with_gradients(partial(nsa_attention, backend="triton"))
    assert passes == ["masked_forward"]
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-4)


def _grid(tokens: int, group: int, geometry: BlockGeometry = PAPER) -> Grid:
    """Of one sequence of so many tokens on device "meta"."""
    q = torch.empty(1, tokens, 2 * group, 64, device="meta", dtype=torch.bfloat16)
    k = torch.empty(1, tokens, 2, 64, device="meta", dtype=torch.bfloat16)
    caches = Caches(k, k, k, k, k, k)
    return function.make_grid(q, caches, geometry=geometry, start=0, lengths=None, scale=0.125)


@pytest.mark.parametrize(
    ("tokens", "group", "forward", "backward"),
    [
        (1024, 4, True, True),
        (2048, 4, True, True),
        (4096, 4, True, False),
        (8192, 4, True, False),
        (16384, 4, False, False),  # more blocks than a row has bits
        (1024, 16, False, False),  # fills the smallest product by itself
        (4096, 8, True, False),
    ],
)
def test_masks_are_taken_where_counted_operations_say_so(
    monkeypatch: pytest.MonkeyPatch, tokens: int, group: int, forward: bool, backward: bool
) -> None:
    monkeypatch.setattr(conditions, "masked_rates", lambda _: configs.H200_MASKED)
    grid = _grid(tokens, group)
    served = conditions.serves_forward(grid, 64, 64, torch.bfloat16)
    assert (served, served and conditions.serves_backward(grid, shared=True)) == (forward, backward)
    assert not conditions.serves_forward(grid, 64, 64, torch.float32)
    assert not conditions.serves_forward(grid, 128, 128, torch.bfloat16)
    assert not conditions.serves_forward(grid, 48, 64, torch.bfloat16)


def test_one_chosen_block_beside_the_forced_is_gathered_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "masked_rates", lambda _: configs.H200_MASKED)
    few = replace(PAPER, select_count=4)
    assert not conditions.serves_forward(_grid(4096, 4, few), 64, 64, torch.bfloat16)
    assert conditions.serves_forward(_grid(1024, 4, few), 64, 64, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("shared", [False, True], ids=["K/V of its own for the window", "one K/V"])
@pytest.mark.parametrize("tokens", [700, 1024, 2000, 4096])
def test_what_is_shipped_agrees_with_torch_in_float32(
    make_inputs: Callable, passes: list[str], tokens: int, shared: bool
) -> None:
    if configs.table_name(DEVICE) != "h200":
        pytest.skip("masked kernels have no rates for this card")
    inputs = make_inputs(PAPER, queries=tokens, group=4, dim=64, dtype=torch.float32).to("cuda")
    inputs = replace(inputs, tensors=tuple(x.bfloat16() for x in inputs.tensors))
    exact = replace(inputs, tensors=tuple(x.float() for x in inputs.tensors))
    attend = partial(one_kv, nsa_attention) if shared else nsa_attention
    expected, expected_blocks, expected_gradients = exact.run_with_gradients(partial(attend, backend="torch"))
    out, blocks, gradients = inputs.run_with_gradients(partial(attend, backend="triton"))
    assert passes[0] == "masked_forward"
    assert (blocks == expected_blocks).float().mean() > 0.999
    for mine, theirs in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        assert (mine.float() - theirs).norm() <= 1e-2 * theirs.norm()
