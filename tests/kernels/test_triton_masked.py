"""The masked kernels against the oracle, and when they are taken; in the interpreter where there is no GPU."""

import os
from collections.abc import Callable
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

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALWAYS = {"GATHER_TBS": 1, "FORWARD_TFLOPS": 1000, "BACKWARD_TFLOPS": 1000, "LISTS_TFLOPS": 1}
FORWARD = {**ALWAYS, "LISTS_TFLOPS": 1_000_000}
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
    "group of 4, few chosen": (FEW, {"queries": 83, "group": 4, "batch": 1}),
    "one head a group": (FEW, {"queries": 70, "group": 1, "value_dim": 32, "batch": 1}),
    "odd group, rows of other lengths": (MORE, {"queries": 70, "group": 3, "lengths": [61, 70], "kv_heads": 1}),
    "against a cache": (FEW, {"queries": 18, "start": 60, "group": 2, "batch": 1}),
    "rows that start apart": (FEW, {"queries": 20, "start": [0, 55], "group": 4, "lengths": [13, 74], "kv_heads": 1}),
    "8 heads": (MORE, {"queries": 70, "group": 8, "kv_heads": 1, "batch": 1}),
    "everything chosen": (REACHED, {"queries": 85, "group": 4, "batch": 1, "kv_heads": 1}),
    "shorter than a block": (REACHED, {"queries": 5, "group": 4, "batch": 1}),
}  # fmt: skip


@pytest.mark.usefixtures("poisoned_allocations")
@pytest.mark.parametrize("shared", [False, True], ids=["K/V of its own for the window", "one K/V"])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_oracle(
    make_inputs: Callable, oracle: Callable, rates: Callable, passes: list[str], case: str, shared: bool
) -> None:
    geometry, sizes = CASES[case]
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
