"""The attention of the triton backend, forward and backward, in the interpreter where there is no GPU.

Sizes are small for the interpreter's sake: what it takes grows with the programs launched and their steps.
"""

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

from nsa_kernels import BlockGeometry, nsa_attention, num_blocks
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.function import make_grid
from nsa_kernels.triton.prefill.compressed import compressed_forward
from nsa_kernels.triton.prefill.select import select
from nsa_kernels.types import Caches

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = BlockGeometry(block=4, stride=2, select_block=4, select_count=4, window=7)
"""A geometry in which 17 tokens have to choose."""
triton_attention = partial(nsa_attention, backend="triton")

CASES = {
    "one token": {"queries": 1},
    "shorter than a block": {"queries": 3},
    "has to choose": {"queries": 25},
    "one head to a group": {"queries": 19, "group": 1, "kv_heads": 2},
    "groups of sixteen": {"queries": 6, "start": 18, "group": 16, "kv_heads": 1},
    "a group of five": {"queries": 5, "start": 15, "group": 5},
    "wide keys": {"queries": 5, "start": 16, "dim": 192, "value_dim": 128, "kv_heads": 1},
    "widths that are padded": {"queries": 19, "dim": 5, "value_dim": 7, "kv_heads": 1},
    "shared keys and values": {"queries": 19, "shared": True, "kv_heads": 1},
    "against a cache": {"queries": 7, "start": 22},
}
PADDED_CASES = {
    "a start for each row": {"queries": 9, "start": [0, 21], "lengths": [9, 30]},
    "a chunk that ends early": {"queries": 12, "start": [3, 20], "lengths": [8, 27]},
    "padded rows": {"queries": 21, "lengths": [21, 3]},
    "an empty row": {"queries": 5, "start": 13, "lengths": [0, 18]},
}


pytestmark = pytest.mark.usefixtures("poisoned_allocations")


def test_allocations_are_poisoned() -> None:
    assert torch.empty(3, device=DEVICE).isnan().all()
    assert (torch.empty(3, dtype=torch.int32, device=DEVICE) == torch.iinfo(torch.int32).max).all()


def differentiate(inputs, attention: Callable, dout: Tensor, **kwargs) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, blocks, and the gradient for each tensor."""
    leaves = tuple(x.detach().clone().requires_grad_() for x in inputs.tensors)
    out, blocks = replace(inputs, tensors=leaves).run(attention, **kwargs)
    out.backward(dout.to(out))
    return out.detach(), blocks, [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def gradient_of_the_output(inputs, value_dim: int) -> Tensor:
    shape = (*inputs.tensors[0].shape[:3], value_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def check(inputs, oracle: Callable, *, rtol: float = 1e-4, atol: float = 2e-5, **kwargs) -> None:
    """Outputs, blocks and gradients against the oracle; padding is NaN, for the oracle it is not."""
    exact = replace(inputs, tensors=tuple(x.double() for x in inputs.tensors))
    dout = gradient_of_the_output(inputs, inputs.tensors[2].shape[-1])
    expected, expected_blocks, expected_gradients = differentiate(exact, oracle, dout, **kwargs)
    if inputs.lengths is not None:
        inputs, dout = poison(inputs, dout)
    out, blocks, gradients = differentiate(inputs.to(DEVICE), triton_attention, dout, **kwargs)
    assert torch.equal(blocks.cpu(), expected_blocks)
    torch.testing.assert_close(out.cpu(), expected.to(out.dtype), rtol=rtol, atol=atol)
    names = (*Caches._fields, "gates")
    for name, ours, theirs in zip(("q", *names), gradients, expected_gradients, strict=True):
        torch.testing.assert_close(
            ours.cpu().double(),
            theirs,
            rtol=10 * rtol,
            atol=10 * atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def poison(inputs, dout: Tensor) -> tuple:
    """NaN in everything at and past each row's end, and in compressed blocks that reach beyond it."""
    tensors, dout = [x.clone() for x in inputs.tensors], dout.clone()
    for row, length in enumerate(inputs.lengths.tolist()):
        start = inputs.start if isinstance(inputs.start, int) else int(inputs.start[row])
        queries = max(0, length - start)
        blocks = num_blocks(length, inputs.geometry)
        firsts = (queries, blocks, blocks, length, length, length, length, queries)
        for x, first in zip((*tensors, dout), (*firsts, queries), strict=True):
            x[row, first:] = float("nan")
    return replace(inputs, tensors=tuple(tensors)), dout


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_oracle(case: dict, make_inputs, oracle) -> None:
    check(make_inputs(SMALL, **{"dim": 16, "batch": 1, **case}, dtype=torch.float32), oracle)


@pytest.mark.parametrize("case", PADDED_CASES.values(), ids=PADDED_CASES)
def test_padding_may_hold_anything(case: dict, make_inputs, oracle) -> None:
    inputs = make_inputs(SMALL, **case, dim=16, kv_heads=1, dtype=torch.float32)
    check(inputs, oracle)


def test_inference_gives_what_training_does(make_inputs) -> None:
    case = PADDED_CASES["a start for each row"]
    inputs = make_inputs(SMALL, **case, dim=16, kv_heads=1, dtype=torch.float32)
    inputs, dout = poison(inputs, gradient_of_the_output(inputs, 16))
    expected, expected_blocks, _ = differentiate(inputs.to(DEVICE), triton_attention, dout)
    out, blocks = inputs.to(DEVICE).run(triton_attention)
    assert torch.equal(blocks, expected_blocks)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("block", "select_block", "stride", "count", "window"),
    [
        (1, 1, 1, 5, 1),
        (2, 2, 2, 3, 64),
        (3, 3, 1, 6, 5),
        (2, 6, 2, 4, 12),
        (4, 8, 2, 3, 33),
        (6, 8, 2, 4, 3),
        (3, 4, 1, 5, 20),
        (9, 3, 3, 4, 10),
        (12, 4, 4, 4, 17),
    ],
)
def test_geometries(
    block: int, select_block: int, stride: int, count: int, window: int, make_inputs, oracle
) -> None:
    geometry = BlockGeometry(
        block=block, stride=stride, select_block=select_block, select_count=count, window=window
    )
    inputs = make_inputs(
        geometry, queries=5, start=28, batch=1, kv_heads=1, dim=16, dtype=torch.float32, seed=block
    )
    check(inputs, oracle)


@pytest.mark.parametrize("branch", [0, 1, 2], ids=["compressed", "selected", "window"])
def test_each_branch_alone(branch: int, make_inputs, oracle) -> None:
    inputs = make_inputs(SMALL, queries=19, batch=1, kv_heads=1, dim=16, dtype=torch.float32)
    gates = torch.zeros_like(inputs.tensors[7])
    gates[..., branch] = 1
    inputs = replace(inputs, tensors=(*inputs.tensors[:7], gates))
    check(inputs, oracle)
    if branch == 0:  # the first tokens see no complete block
        out, _ = inputs.to(DEVICE).run(triton_attention)
        assert not out[:, : SMALL.block - 1].any()


def test_half_precision_stays_close(make_inputs, oracle) -> None:
    inputs = make_inputs(SMALL, queries=11, start=14, batch=1, dim=16, kv_heads=1, dtype=torch.float16)
    check(inputs, oracle, rtol=4e-3, atol=4e-3)


def test_scale(make_inputs, oracle) -> None:
    inputs = make_inputs(SMALL, queries=7, start=14, batch=1, kv_heads=1, dim=5, dtype=torch.float32)
    check(inputs, oracle, scale=1.0)
    default, same, other = (
        inputs.to(DEVICE).run(triton_attention, scale=s).out for s in (None, 5**-0.5, 1.0)
    )
    assert torch.equal(default, same)  # of the width that was given, not of the one that it is padded to
    assert not torch.allclose(default, other)


def test_ties_between_zero_keys_go_to_the_first_blocks(make_inputs) -> None:
    inputs = make_inputs(SMALL, queries=3, start=29, batch=1, dim=16, dtype=torch.float32, group=3)
    q, k_cmp, *rest = inputs.to(DEVICE).tensors
    _, blocks = triton_attention(
        q, torch.zeros_like(k_cmp), *rest, geometry=SMALL, start=29, return_blocks=True
    )
    # Block 0 and the last two are forced; of the others, all equal but for the last, 1 is the lowest.
    assert blocks[:, 2].tolist() == [[[0, 1, 6, 7]] * 2]


@pytest.mark.parametrize("occupancy", [1, 3])
@pytest.mark.parametrize("rows", [16, 64, 128])
def test_selection_in_tiles_of_any_size(rows: int, occupancy: int, make_inputs, oracle) -> None:
    """One, some or all queries to a tile; programs that take one tile, or several one after the other."""
    lengths = [36, 27]
    inputs = make_inputs(
        SMALL, queries=17, start=[19, 11], lengths=lengths, group=8, kv_heads=1, dim=16, dtype=torch.float32
    )
    _, expected = inputs.run(oracle)
    inputs, _ = poison(inputs, gradient_of_the_output(inputs, 16))
    inputs = inputs.to(DEVICE)
    q, *caches, _ = inputs.tensors
    grid = make_grid(
        q, Caches(*caches), geometry=SMALL, start=inputs.start, lengths=inputs.lengths, scale=0.25
    )
    _, lse = compressed_forward(q, *caches[:2], grid)
    config = {**shipped("select", 16, DEVICE), "BM": rows, "OCCUPANCY": occupancy}
    assert torch.equal(select(q, caches[0], lse, grid, config=config).cpu(), expected)


def test_gradients_do_not_depend_on_how_the_caches_lie(make_inputs, oracle) -> None:
    inputs = make_inputs(SMALL, queries=19, dim=16, kv_heads=2, dtype=torch.float32)
    _, _, expected = inputs.run_with_gradients(oracle)
    heads_first = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs.tensors)
    assert not heads_first[1].is_contiguous()
    leaves = [x.detach().to(DEVICE).requires_grad_() for x in heads_first]
    out = triton_attention(*leaves, geometry=SMALL).out
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
    gradients = torch.autograd.grad(out, leaves, weight)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)


def test_keys_behind_the_last_query_are_not_read(make_inputs, oracle) -> None:
    inputs = make_inputs(SMALL, queries=19, dim=16, kv_heads=1, dtype=torch.float32)
    _, _, expected = inputs.run_with_gradients(oracle)
    q, *caches, gates = inputs.tensors
    longer = [torch.cat([x, torch.full_like(x[:, :9], torch.nan)], 1) for x in caches]
    leaves = [x.detach().clone().to(DEVICE).requires_grad_() for x in (q, *longer, gates)]
    out = triton_attention(*leaves, geometry=SMALL).out
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
    gradients = torch.autograd.grad(out, leaves, weight)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours[:, : theirs.shape[1]].cpu(), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spoilt", [(0, 100), (1, 157), (1, 159)], ids=str)
def test_a_query_of_nan_spoils_no_other(spoilt: tuple[int, int], make_inputs) -> None:
    """More blocks than fit are as good as the last of them: its list must not run into the next."""
    inputs = make_inputs(SMALL, queries=160, dim=16, kv_heads=1, dtype=torch.float32).to(DEVICE)
    q, *rest = inputs.tensors
    expected = triton_attention(q, *rest, geometry=SMALL, return_blocks=True)
    q = q.clone()
    q[spoilt] = torch.nan
    out, blocks = triton_attention(q, *rest, geometry=SMALL, return_blocks=True)
    assert out[spoilt].isnan().all()
    chosen = blocks[spoilt].flatten().tolist()
    assert sorted(set(chosen)) == chosen
    assert chosen[0] == 0
    assert chosen[-2:] == [spoilt[1] // 4 - 1, spoilt[1] // 4]
    blocks[spoilt], out[spoilt] = expected.blocks[spoilt], expected.out[spoilt]
    assert torch.equal(blocks, expected.blocks)
    torch.testing.assert_close(out, expected.out)


def test_a_second_derivative_is_refused(make_inputs) -> None:
    inputs = make_inputs(SMALL, queries=3, dim=16, dtype=torch.float32).to(DEVICE)
    q, *rest = inputs.tensors
    q = q.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        triton_attention(q, *rest, geometry=SMALL).out.square().sum(), q, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
