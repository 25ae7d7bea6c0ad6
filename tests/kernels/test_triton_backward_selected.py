"""The gradient of the selected branch against the oracle, and the lists it works through."""

import os

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import BlockGeometry
from nsa_kernels.triton.backward.query_lists import query_lists
from nsa_kernels.triton.backward.selected import selected_backward
from nsa_kernels.triton.tiles import LOG2E, Grid

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = {"BM": 16, "BN": 16, "CHUNK": 16, "PIECE": 6, "HALVES": 0, "num_warps": 4, "num_stages": 2}
SMALL = BlockGeometry(block=8, stride=4, select_block=8, select_count=4, window=12)


def make_grid(
    geometry: BlockGeometry,
    *,
    queries: int,
    kv_heads: int,
    group: int,
    width: int,
    starts: list[int],
    ends: list[int] | None = None,
    keys: int | None = None,
) -> Grid:
    size = keys or max(starts) + queries
    return Grid(
        geometry=geometry,
        starts=torch.tensor(starts, dtype=torch.int32, device=DEVICE),
        ends=torch.tensor(ends or [size] * len(starts), dtype=torch.int32, device=DEVICE),
        batch=len(starts),
        queries=queries,
        keys=size,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        scale=width**-0.5,
        longest=size,
        padded=ends is not None or len(set(starts)) > 1,
    )


def choose(grid: Grid) -> Tensor:
    """Random blocks as a selection gives them: ascending with the forced, -1 behind and at padding."""
    generator = torch.Generator().manual_seed(1)
    geometry = grid.geometry
    blocks = torch.full(
        (grid.batch, grid.queries, grid.kv_heads, geometry.select_count), -1, dtype=torch.int32
    )
    for b, (start, end) in enumerate(zip(grid.starts.tolist(), grid.ends.tolist(), strict=True)):
        for i in range(max(0, min(grid.queries, end - start))):
            own = (start + i) // geometry.select_block
            for h in range(grid.kv_heads):
                order = [own, own - 1, 0, *torch.randperm(own + 1, generator=generator).tolist()]
                chosen = sorted([j for j in dict.fromkeys(order) if j >= 0][: geometry.select_count])
                blocks[b, i, h, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
    return blocks.to(DEVICE)


def seen(blocks: Tensor, grid: Grid) -> Tensor:
    """bool [B, N, H, S]: the token is in a chosen block of the head's group and not behind the query."""
    s = torch.arange(grid.keys, device=DEVICE)
    t = grid.starts[:, None] + torch.arange(grid.queries, device=DEVICE)
    mask = (s // grid.geometry.select_block == blocks[..., None]).any(-2)
    mask = mask & (s <= t[:, :, None])[:, :, None] & (t < grid.ends[:, None])[..., None, None]
    return mask.repeat_interleave(grid.group, dim=2)


def oracle(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, mask: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The gated branch [B, N, H, D_v] and its log-sum-exp in units of log2, in float64."""
    k, v = (x.repeat_interleave(grid.group, dim=2) for x in (k, v))
    scores = torch.einsum("bnhd,bshd->bnhs", q, k) * grid.scale
    scores = scores.masked_fill(~mask, float("-inf"))
    lse = scores.logsumexp(-1)
    p = (scores - lse.masked_fill(lse.isinf(), 0.0)[..., None]).exp()
    lse = torch.where(mask.any(-1), lse * LOG2E, float("inf"))
    return gates[..., 1:2] * torch.einsum("bnhs,bshd->bnhd", p, v), lse


def check(
    grid: Grid,
    *,
    width: int = 16,
    value_width: int | None = None,
    config: dict[str, int] | None = None,
    poison: bool = False,
    strided: bool = False,
    gate: float | None = None,
) -> None:
    """Compares all gradients with autograd of the oracle in float64."""
    torch.manual_seed(0)
    value_width = value_width or width
    dtype = torch.float32

    def random(*shape: int) -> Tensor:
        x = torch.randn(shape[0], shape[2], shape[1], shape[3]) if strided else torch.randn(shape)
        return (x.transpose(1, 2) if strided else x).to(DEVICE, dtype)

    blocks = choose(grid)
    mask = seen(blocks, grid)
    q = random(grid.batch, grid.queries, grid.heads, width)
    k = random(grid.batch, grid.keys, grid.kv_heads, width)
    v = random(grid.batch, grid.keys, grid.kv_heads, value_width)
    dout = random(grid.batch, grid.queries, grid.heads, value_width)
    gates = random(grid.batch, grid.queries, grid.heads, 3).sigmoid()
    if gate is not None:
        gates[:, ::2, :, 1] = gate
    leaves = [x.double().clone().requires_grad_() for x in (q, k, v, gates)]
    out, lse = oracle(*leaves, mask, grid)
    out.backward(dout.double())
    before = torch.randn(grid.batch, grid.queries, grid.heads, width, device=DEVICE)
    dgates = leaves[3].grad.float()
    if poison:
        ends = grid.ends[:, None]
        behind = torch.arange(grid.keys, device=DEVICE) >= ends
        padding = grid.starts[:, None] + torch.arange(grid.queries, device=DEVICE) >= ends
        k[behind] = v[behind] = float("nan")
        q[padding] = dout[padding] = gates[padding] = float("nan")
    dq = before.clone()
    dk, dv = selected_backward(
        q, k, v, dout, lse.detach().float(), gates, dgates, blocks, dq, grid, config=CONFIG | (config or {})
    )
    assert dk.dtype == dv.dtype == dtype
    for name, got, leaf in (("q", (dq - before) * grid.scale, 0), ("k", dk, 1), ("v", dv, 2)):
        expected = leaves[leaf].grad.float()
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(
            got, expected, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"d{name}: {m}"
        )


@pytest.mark.parametrize("group", [1, 2, 5, 16])
def test_gradients_are_the_oracles_for_every_group_size(group: int) -> None:
    check(make_grid(SMALL, queries=37, kv_heads=2, group=group, width=16, starts=[0]))


@pytest.mark.parametrize("size", [4, 8, 16, 24, 64])
def test_gradients_are_the_oracles_for_every_block_size(size: int) -> None:
    geometry = BlockGeometry(block=8, stride=4, select_block=size, select_count=4, window=12)
    check(make_grid(geometry, queries=71, kv_heads=1, group=2, width=16, starts=[0]))


def test_blocks_that_are_no_power_of_2_are_padded_in_one_tile() -> None:
    geometry = BlockGeometry(block=6, stride=6, select_block=12, select_count=4, window=12)
    check(make_grid(geometry, queries=53, kv_heads=2, group=2, width=32, starts=[3]), config={"BN": 64})


@pytest.mark.parametrize(("width", "value_width"), [(32, 32), (32, 16), (192, 128)])
@pytest.mark.parametrize("halves", [0, 1])
def test_key_and_value_widths_may_differ(width: int, value_width: int, halves: int) -> None:
    grid = make_grid(SMALL, queries=19, kv_heads=1, group=2, width=width, starts=[8])
    check(grid, width=width, value_width=value_width, config={"HALVES": halves})


def test_rows_start_where_they_start_and_padding_poisons_nothing() -> None:
    grid = make_grid(
        SMALL, queries=30, kv_heads=2, group=3, width=16, starts=[0, 13, 29], ends=[21, 43, 30], keys=61
    )
    check(grid, poison=True)


@pytest.mark.parametrize(
    "config",
    [
        {"BM": 32, "CHUNK": 8, "PIECE": 3},
        {"BM": 64, "BN": 32, "CHUNK": 64, "PIECE": 64},
        {"BM": 16, "CHUNK": 24, "PIECE": 1},
    ],
)
def test_chunks_and_pieces_change_nothing(config: dict[str, int]) -> None:
    grid = make_grid(SMALL, queries=50, kv_heads=1, group=4, width=16, starts=[0, 11])
    check(grid, config=config)


def test_heads_may_stand_before_tokens_in_memory() -> None:
    check(make_grid(SMALL, queries=30, kv_heads=2, group=2, width=16, starts=[5, 0]), strided=True)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_closed_and_open_gates(gate: float) -> None:
    check(make_grid(SMALL, queries=30, kv_heads=2, group=2, width=16, starts=[5]), gate=gate)


@pytest.mark.parametrize(("chunk", "piece"), [(8, 3), (16, 16), (64, 5), (1, 1)])
@pytest.mark.parametrize(("starts", "ends"), [([0, 17], [43, 40]), ([0], None), ([5, 5], None)])
def test_lists_hold_the_queries_that_chose_a_block(
    chunk: int, piece: int, starts: list[int], ends: list[int] | None
) -> None:
    grid = make_grid(SMALL, queries=43, kv_heads=2, group=1, width=16, starts=starts, ends=ends)
    blocks = choose(grid)
    lists = query_lists(blocks, grid, chunk=chunk, piece=piece)
    expected: dict[int, list[int]] = {}
    for b, i, h, _ in (blocks >= 0).nonzero().tolist():
        for j in blocks[b, i, h].tolist():
            cell = ((b * grid.kv_heads + h) * lists.chunks + i // chunk) * lists.blocks + j
            if j >= 0 and i % chunk not in expected.setdefault(cell, []):
                expected[cell].append(i % chunk)
    found: dict[int, list[int]] = {}
    cells, counts = lists.cells.tolist(), lists.counts.tolist()
    used = sum(count > 0 for count in counts)
    assert all(counts[:used])
    assert cells[:used] == sorted(cells[:used])
    for cell, first, count in zip(cells[:used], lists.firsts.tolist(), counts, strict=False):
        assert count <= piece
        found.setdefault(cell, []).extend(lists.queries[first : first + count].tolist())
    assert {cell: sorted(members) for cell, members in found.items()} == expected
    assert used == sum(-(-len(members) // piece) for members in expected.values())


def test_nothing_chosen_gives_no_gradient() -> None:
    grid = make_grid(SMALL, queries=5, kv_heads=1, group=1, width=16, starts=[7], ends=[7])
    q, k, v = (torch.full((1, n, 1, 16), float("nan"), device=DEVICE) for n in (5, 12, 12))
    rows = torch.full((1, 5, 1), float("inf"), device=DEVICE)
    gates = torch.ones(1, 5, 1, 3, device=DEVICE)
    blocks = torch.full((1, 5, 1, 4), -1, dtype=torch.int32, device=DEVICE)
    dq = torch.zeros_like(q)
    grads = selected_backward(q, k, v, q, rows, gates, gates, blocks, dq, grid, config=CONFIG)
    assert all((x == 0).all() for x in (dq, *grads))
