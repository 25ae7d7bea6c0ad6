"""Every backend and path against the oracle: outputs, blocks and gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsa_kernels import BlockGeometry, compress_mean, nsa_attention

CASES = {
    "one token": {"queries": 1},
    "shorter than a block": {"queries": 7},
    "exactly one block": {"queries": 8},
    "one more than a block": {"queries": 9},
    "everything selected": {"queries": 32},
    "has to choose": {"queries": 61},
    "one head to a group": {"queries": 40, "group": 1, "kv_heads": 3},
    "groups of sixteen": {"queries": 40, "group": 16, "kv_heads": 1},
    "values wider than keys": {"queries": 40, "value_dim": 7},
    "keys wider than values": {"queries": 40, "value_dim": 2},
    "shared keys and values": {"queries": 40, "shared": True},
    "against a cache": {"queries": 13, "start": 39},
    "one token against a cache": {"queries": 1, "start": 52},
    "a start for each row": {"queries": 9, "start": [0, 41], "lengths": [9, 50]},
    "padded rows": {"queries": 45, "lengths": [45, 3]},
    "an empty row": {"queries": 20, "lengths": [0, 20]},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_oracle(
    case: dict, attention: Callable, oracle: Callable, make_inputs, small
) -> None:
    inputs = make_inputs(small, **case)
    out, blocks, gradients = inputs.run_with_gradients(attention)
    expected_out, expected_blocks, expected_gradients = inputs.run_with_gradients(oracle)
    assert blocks.dtype == torch.int32
    assert torch.equal(blocks, expected_blocks)
    torch.testing.assert_close(out, expected_out)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():  # inference goes other ways than training
        out, blocks = inputs.run(attention)
    assert torch.equal(blocks, expected_blocks)
    torch.testing.assert_close(out, expected_out)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_agrees_with_the_oracle_on_any_shape(
    attention: Callable, oracle: Callable, make_inputs, shapes: Callable, data: st.DataObject
) -> None:
    geometry, case = data.draw(shapes(30, any_rule=True))
    inputs = make_inputs(geometry, **case)
    out, blocks, gradients = inputs.run_with_gradients(attention)
    expected_out, expected_blocks, expected_gradients = inputs.run_with_gradients(oracle)
    assert torch.equal(blocks, expected_blocks)
    torch.testing.assert_close(out, expected_out)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_close(
    dtype: torch.dtype, attention: Callable, oracle: Callable, make_inputs, small
):
    inputs = make_inputs(small, queries=50, dtype=dtype)
    out, blocks = inputs.run(attention)
    expected, expected_blocks = inputs.run(oracle)
    assert out.dtype == dtype
    assert torch.equal(blocks, expected_blocks)  # scored in float32, even from bfloat16 keys
    error = (out.double() - expected.double()).abs().max().item()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)


def test_scale_defaults_to_the_root_of_the_key_width(attention: Callable, make_inputs, small) -> None:
    inputs = make_inputs(small, queries=30, dim=5)
    default, same, other = (inputs.run(attention, scale=s).out for s in (None, 5**-0.5, 1.0))
    assert torch.equal(default, same)
    assert not torch.allclose(default, other)


def _dense(inputs) -> torch.Tensor:
    q, k, v = inputs.tensors[0], inputs.tensors[3], inputs.tensors[4]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def _only(inputs, branch: int) -> torch.Tensor:
    gates = torch.zeros_like(inputs.tensors[7])
    gates[..., branch] = 1
    return gates


@pytest.mark.parametrize("branch", [0, 1, 2], ids=["compressed", "selected", "window"])
def test_each_branch_can_be_dense_attention(branch: int, attention: Callable, make_inputs) -> None:
    """Blocks of one token, enough of them, a wide window: each branch alone is causal attention."""
    geometry = BlockGeometry(block=1, stride=1, select_block=8, select_count=6, window=48)
    inputs = make_inputs(geometry, queries=48, shared=True)
    q, k_cmp, *rest = inputs.tensors
    assert torch.equal(k_cmp, compress_mean(inputs.tensors[3], geometry))
    out, _ = attention(q, k_cmp, *rest[:-1], _only(inputs, branch), geometry=geometry)
    torch.testing.assert_close(out, _dense(inputs))


def test_a_branch_that_sees_nothing_gives_zero(attention: Callable, make_inputs, small) -> None:
    inputs = make_inputs(small, queries=20)
    out, _ = attention(*inputs.tensors[:-1], _only(inputs, 0), geometry=small)
    assert out[:, : small.block - 1].abs().max() == 0
    assert (out[:, small.block - 1 :].abs().amax(-1) > 0).all()


def test_ties_between_zero_keys_go_to_the_first_blocks(attention: Callable, make_inputs, small) -> None:
    inputs = make_inputs(small, queries=64, dtype=torch.float32, group=3)
    q, k_cmp, *rest = inputs.tensors
    _, blocks = attention(q, torch.zeros_like(k_cmp), *rest, geometry=small, return_blocks=True)
    # Block 0 and the last two are forced; of the others, all equal but for the last, 1 is the lowest.
    assert blocks[:, 63].tolist() == [[[0, 1, 6, 7]] * 2] * 2


def test_later_tokens_change_nothing(attention: Callable, make_inputs, small) -> None:
    inputs = make_inputs(small, queries=60)
    q, k_cmp, v_cmp, k_slc, v_slc, k_win, v_win, gates = inputs.tensors
    seen = 37
    blocks_seen = (seen - small.block) // small.stride + 1
    changed = [x.clone() for x in (k_cmp, v_cmp, k_slc, v_slc, k_win, v_win)]
    for x, first in zip(changed, (blocks_seen, blocks_seen, seen, seen, seen, seen), strict=True):
        x[:, first:] = 100 * torch.randn_like(x[:, first:])
    out, blocks = inputs.run(attention)
    other, other_blocks = attention(q, *changed, gates, geometry=small, return_blocks=True)
    torch.testing.assert_close(out[:, :seen], other[:, :seen])
    assert torch.equal(blocks[:, :seen], other_blocks[:, :seen])


def test_autocast_computes_in_its_dtype(make_inputs, small) -> None:
    inputs = make_inputs(small, queries=40, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in inputs.tensors]
    expected = nsa_attention(*leaves, geometry=small).out
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = nsa_attention(*leaves, geometry=small).out
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in leaves)
    assert (out.float() - expected).abs().max() < 0.1
