"""The masked kernels against the oracle, and when they are taken; in the interpreter where there is no GPU."""

import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import BlockGeometry, nsa_attention
from nsa_kernels.triton import configs, function
from nsa_kernels.triton.masked import conditions

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALWAYS = {"GATHER_TBS": 1, "FORWARD_TFLOPS": 1000, "BACKWARD_TFLOPS": 1000, "LISTS_TFLOPS": 1}
FORWARD = {**ALWAYS, "LISTS_TFLOPS": 1_000_000}
FEW = BlockGeometry(block=8, stride=4, select_block=16, select_count=3, window=12)
MORE = BlockGeometry(block=16, stride=8, select_block=32, select_count=4, window=40)
REACHED = BlockGeometry(block=8, stride=4, select_block=16, select_count=7, window=21)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Lets the rates of this device be set: they decide which path is taken."""
    monkeypatch.setattr(conditions, "ANY_DTYPE", True)
    name = configs.table_name(DEVICE)
    yield lambda given: monkeypatch.setattr(configs, "MASKED", {name: given})


CASES = {
    "group of 4, few chosen": (FEW, {"queries": 83, "group": 4}),
    "one head a group": (FEW, {"queries": 70, "group": 1, "dim": 16, "value_dim": 32}),
    "odd group, rows of other lengths": (MORE, {"queries": 90, "group": 3, "lengths": [61, 90]}),
    "against a cache": (FEW, {"queries": 33, "start": 50, "group": 2, "lengths": [70, 83]}),
    "rows that start apart": (FEW, {"queries": 20, "start": [0, 45], "group": 4, "lengths": [13, 64]}),
    "one K/V for two branches": (FEW, {"queries": 75, "group": 4, "shared": True}),
    "one K/V, ragged, 8 heads": (MORE, {"queries": 97, "group": 8, "shared": True, "lengths": [97, 33]}),
    "everything chosen": (REACHED, {"queries": 85, "group": 4}),
    "everything chosen, one K/V": (REACHED, {"queries": 37, "start": 20, "group": 2, "shared": True}),
    "shorter than a block": (REACHED, {"queries": 5, "group": 4, "shared": True}),
}


@pytest.mark.usefixtures("poisoned_allocations")
@pytest.mark.parametrize("backward", [ALWAYS, FORWARD], ids=["masked backward", "backward by lists"])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_oracle(
    make_inputs: Callable, oracle: Callable, rates: Callable, case: str, backward: dict
) -> None:
    geometry, sizes = CASES[case]
    inputs = make_inputs(geometry, **{"dim": 16, **sizes}, dtype=torch.float32)
    expected, expected_blocks, expected_gradients = inputs.run_with_gradients(oracle)
    rates(backward)
    out, blocks, gradients = inputs.to(DEVICE).run_with_gradients(partial(nsa_attention, backend="triton"))
    assert torch.equal(blocks.cpu(), expected_blocks)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)
