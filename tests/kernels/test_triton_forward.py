"""The forward kernels of the triton backend, in the interpreter where there is no GPU."""

import os
from functools import partial

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import BlockGeometry, nsa_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = BlockGeometry(block=8, stride=4, select_block=8, select_count=4, window=12)

CASES = {
    "one token": {"queries": 1},
    "has to choose": {"queries": 61},
    "one head to a group": {"queries": 40, "group": 1, "kv_heads": 3},
    "groups of sixteen": {"queries": 40, "group": 16, "kv_heads": 1},
    "a group of five": {"queries": 40, "group": 5, "kv_heads": 2},
    "wide keys": {"queries": 24, "dim": 192, "value_dim": 128},
    "against a cache": {"queries": 13, "start": 39},
    "a start for each row": {"queries": 9, "start": [0, 41], "lengths": [9, 50]},
    "padded rows": {"queries": 45, "lengths": [45, 3]},
    "an empty row": {"queries": 20, "lengths": [0, 20]},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_oracle(case: dict, make_inputs, oracle) -> None:
    case = {"dim": 16, **case}
    inputs = make_inputs(SMALL, **case, dtype=torch.float32)
    expected, expected_blocks = inputs.run(oracle)
    out, blocks = inputs.to(DEVICE).run(nsa_attention, backend="triton")
    assert torch.equal(blocks.cpu(), expected_blocks)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["has to choose", "padded rows", "a start for each row"])
def test_gradients_agree_with_the_oracle(case: str, make_inputs, oracle) -> None:
    inputs = make_inputs(SMALL, **{"dim": 16, **CASES[case]}, dtype=torch.float32)
    _, _, expected = inputs.run_with_gradients(oracle)
    _, _, gradients = inputs.to(DEVICE).run_with_gradients(partial(nsa_attention, backend="triton"))
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)
