"""The backward kernels that walk over all keys of a band, against autograd in float64."""

import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import BlockGeometry, num_blocks
from nsa_kernels.triton.backward.compressed import compressed_backward
from nsa_kernels.triton.backward.gates import gate_backward
from nsa_kernels.triton.backward.window import window_backward
from nsa_kernels.triton.tiles import LOG2E, Grid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GEOMETRY = BlockGeometry(block=8, stride=4, select_block=8, select_count=3, window=11)
TILE = {"BM": 16, "BN": 16, "CHUNK": 0, "TMA": 0, "num_warps": 4, "num_stages": 2}
NAN = float("nan")


class Problem:
    """One branch: random inputs, the forward in float64, and what autograd makes of them."""

    def __init__(
        self,
        branch,
        *,
        queries=45,
        starts=(0,),
        ends=None,
        kv_heads=2,
        group=2,
        widths=(16, 32),
        poison=False,
    ):
        generator = torch.Generator().manual_seed(0)
        self.branch, batch, heads = branch, len(starts), kv_heads * group
        size = queries + max(starts)
        ends = ends or [queries + start for start in starts]
        self.ends, self.positions = ends, [start + torch.arange(queries) for start in starts]
        self.real = torch.stack([t < end for t, end in zip(self.positions, ends, strict=True)]).to(DEVICE)
        keys = num_blocks(size, GEOMETRY) if branch == 0 else size
        shapes = [
            (batch, queries, heads, widths[0]),
            (batch, keys, kv_heads, widths[0]),
            (batch, keys, kv_heads, widths[1]),
            (batch, queries, heads, widths[1]),
        ]
        self.q, self.k, self.v, self.dout = (torch.randn(s, generator=generator).to(DEVICE) for s in shapes)
        self.gates = torch.randn(batch, queries, heads, 3, generator=generator).sigmoid().to(DEVICE)
        self.gates[0, 0, 0] = 0.0
        self.scale = widths[0] ** -0.5
        self.grid = Grid(
            geometry=GEOMETRY,
            starts=torch.tensor(starts, dtype=torch.int32, device=DEVICE),
            ends=torch.tensor(ends, dtype=torch.int32, device=DEVICE),
            batch=batch,
            queries=queries,
            keys=size,
            heads=heads,
            kv_heads=kv_heads,
            scale=self.scale,
            longest=size,
            padded=any(end < start + queries for start, end in zip(starts, ends, strict=True)),
        )
        self.expected, self.lse, self.out = self._solve()
        if poison:
            for x in (self.q, self.dout, self.gates, self.out):
                x[~self.real] = NAN
            for b, end in enumerate(ends):
                last = num_blocks(end, GEOMETRY) if branch == 0 else end
                self.k[b, last:], self.v[b, last:] = NAN, NAN

    def _seen(self, b: int) -> Tensor:
        """Which keys the queries of a row see [N, keys]."""
        t, j = self.positions[b][:, None], torch.arange(self.k.shape[1])
        if self.branch == 0:
            return j * GEOMETRY.stride + GEOMETRY.block <= t + 1
        return (j <= t) & (j > t - GEOMETRY.window)

    def _solve(self):
        group = self.q.shape[2] // self.k.shape[2]
        leaves = [x.double().cpu().requires_grad_() for x in (self.q, self.k, self.v, self.gates)]
        q, k, v, gates = leaves
        scores = torch.einsum("bnhd,bjhd->bnhj", q * self.scale, k.repeat_interleave(group, 2))
        seen = torch.stack([self._seen(b) for b in range(len(self.ends))])
        seen = (seen & self.real.cpu()[:, :, None])[:, :, None]
        scores = scores.masked_fill(~seen, -torch.inf)
        lse = scores.logsumexp(-1)
        nothing = lse == -torch.inf
        p = (scores - lse.masked_fill(nothing, 0.0)[..., None]).exp()
        out = torch.einsum("bnhj,bjhd->bnhd", p, v.repeat_interleave(group, 2))
        (out * gates[..., self.branch, None] * self.dout.double().cpu()).sum().backward()
        lse = (lse * LOG2E).masked_fill(nothing, torch.inf).detach()
        return [x.grad for x in leaves], lse.float().to(DEVICE), out.detach().float().to(DEVICE)

    def check(self, config=None):
        stage = compressed_backward if self.branch == 0 else window_backward
        dgates = gate_backward(self.dout, self.out, self.out, self.out, self.grid)
        before = torch.randn(self.q.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        dq = before.clone()
        dk, dv = stage(
            self.q, self.k, self.v, self.dout, self.lse, self.gates, dgates, dq, self.grid, config=config
        )
        got = [(dq - before) * self.scale, dk, dv, dgates[..., self.branch]]
        want = [*self.expected[:3], self.expected[3][..., self.branch]]
        for name, one, other in zip(("q", "k", "v", "gates"), got, want, strict=True):
            assert other.abs().max() > 0
            torch.testing.assert_close(
                one.double().cpu(),
                other,
                atol=2e-5,
                rtol=1e-4,
                msg=lambda text, name=name: f"d{name}: {text}",
            )


branches = pytest.mark.parametrize("branch", [0, 2], ids=["compressed", "window"])


@branches
@pytest.mark.parametrize(("kv_heads", "group"), [(2, 1), (2, 2), (1, 5), (2, 16)])
def test_gradients_of_all_group_sizes(branch, kv_heads, group):
    Problem(branch, kv_heads=kv_heads, group=group).check()


@branches
@pytest.mark.parametrize("group", [1, 5])
def test_rows_that_start_and_end_anywhere_and_padding_of_nan(branch, group):
    starts, ends = [0, 37, 5, 60], [33, 61, 9, 105]
    Problem(branch, starts=starts, ends=ends, kv_heads=1, group=group, poison=True).check()


@branches
def test_head_dimensions_192_and_128(branch):
    Problem(branch, queries=27, widths=(192, 128), kv_heads=1).check()


@branches
@pytest.mark.parametrize("bulk", [0, 1])  # which only a GPU tells apart
@pytest.mark.parametrize("padded", [False, True])
def test_every_way_of_launching(branch, bulk, padded):
    starts, ends = [0, 30], [70, 93] if padded else None
    problem = Problem(branch, queries=70, starts=starts, ends=ends, group=4, poison=True)
    problem.check(TILE | {"TMA": bulk})


@pytest.mark.parametrize("chunk", [1, 17, 32])
def test_chunks_of_queries_add_up(chunk):
    Problem(0, queries=70, starts=(3,)).check(TILE | {"CHUNK": chunk})


@branches
@pytest.mark.parametrize(("rows", "keys"), [(16, 64), (64, 16), (32, 32)])
def test_tiles_of_any_shape(branch, rows, keys):
    Problem(branch, queries=70, group=1, starts=(3,)).check(TILE | {"BM": rows, "BN": keys})


def test_queries_before_the_first_compressed_block_give_no_gradients():
    problem = Problem(0, queries=20)
    few = [x[:, :5] for x in (problem.q, problem.dout, problem.lse.contiguous(), problem.gates, problem.out)]
    q, dout, lse, gates, out = (x.contiguous() for x in few)
    grid = replace(problem.grid, queries=5, ends=torch.full_like(problem.grid.ends, 5))
    dq = torch.zeros_like(q)
    dgates = gate_backward(dout, out, out, out, grid)
    dk, dv = compressed_backward(q, problem.k, problem.v, dout, lse, gates, dgates, dq, grid)
    assert lse.isinf().all()
    assert not any(x.any() for x in (dq, dk, dv))


def test_the_gradient_of_the_gates_is_zero_at_padding_and_may_be_read_in_any_layout():
    generator = torch.Generator().manual_seed(0)
    shape = (2, 7, 3, 16)
    dout, *outs = (torch.randn(shape, generator=generator).to(DEVICE) for _ in range(4))
    outs[1] = outs[1].transpose(1, 2).contiguous().transpose(1, 2)
    grid = Problem(2, queries=7, starts=(4, 0), ends=[9, 7], kv_heads=1, group=3).grid
    for x in (dout, *outs):
        x[0, 5:] = NAN
    dgates = gate_backward(dout, *outs, grid, config={"BM": 4, "num_warps": 1, "num_stages": 1})
    expected = torch.stack([(dout * x).sum(-1) for x in outs], -1)
    expected[0, 5:] = 0.0
    torch.testing.assert_close(dgates, expected)
