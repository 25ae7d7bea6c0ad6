"""The selected branch's forward by blocks, against the one by queries and against float64."""

import os

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import BlockGeometry
from nsa_kernels.geometry import FORCED_BLOCKS
from nsa_kernels.triton import selected_by_block
from nsa_kernels.triton.forced import forced_forward
from nsa_kernels.triton.inverse import query_lists
from nsa_kernels.triton.selected import selected_forward
from nsa_kernels.triton.selected_by_block import selected_forward_by_block
from nsa_kernels.triton.tiles import LOG2E, Grid

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = {
    "BM": 16,
    "BN": 16,
    "TMA": 0,
    "CHUNK": 16,
    "PIECE": 6,
    "STREAM": 0,
    "ROWS": 16,
    "SLOTS": 2,
    "merge_warps": 1,
    "num_warps": 4,
    "num_stages": 2,
}
SMALL = BlockGeometry(block=8, stride=4, select_block=8, select_count=5, window=12)


def make_grid(
    geometry: BlockGeometry,
    *,
    queries: int,
    group: int,
    kv_heads: int = 2,
    width: int = 16,
    starts: tuple[int, ...] = (0,),
    ends: tuple[int, ...] | None = None,
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
    count, size = grid.geometry.select_count, grid.geometry.select_block
    blocks = torch.full((grid.batch, grid.queries, grid.kv_heads, count), -1, dtype=torch.int32)
    for b, (start, end) in enumerate(zip(grid.starts.tolist(), grid.ends.tolist(), strict=True)):
        for i in range(max(0, min(grid.queries, end - start))):
            own = (start + i) // size
            for h in range(grid.kv_heads):
                order = [own, own - 1, 0, *torch.randperm(own + 1, generator=generator).tolist()]
                chosen = sorted([j for j in dict.fromkeys(order) if j >= 0][:count])
                blocks[b, i, h, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
    return blocks.to(DEVICE)


def reference(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, gates: Tensor, o_cmp: Tensor, o_win: Tensor, grid: Grid
) -> tuple[Tensor, Tensor, Tensor]:
    """The three results in float64."""
    q, k, v, gates, o_cmp, o_win = (x.double() for x in (q, k, v, gates, o_cmp, o_win))
    s = torch.arange(grid.keys, device=DEVICE)
    t = grid.starts[:, None] + torch.arange(grid.queries, device=DEVICE)
    mask = (s // grid.geometry.select_block == blocks[..., None]).any(-2)
    mask = mask & (s <= t[:, :, None])[:, :, None] & (t < grid.ends[:, None])[..., None, None]
    mask = mask.repeat_interleave(grid.group, dim=2)
    k, v = (x.repeat_interleave(grid.group, dim=2) for x in (k, v))
    scores = torch.einsum("bnhd,bshd->bnhs", q, k) * grid.scale
    lse = scores.masked_fill(~mask, float("-inf")).logsumexp(-1)
    some = mask.any(-1)
    p = (scores - lse.masked_fill(~some, 0.0)[..., None]).exp() * mask
    own = torch.einsum("bnhs,bshd->bnhd", p, v)
    out = (gates * some[..., None]).unsqueeze(-1).mul(torch.stack((o_cmp, own, o_win), -2)).sum(-2)
    return out, own, torch.where(some, lse * LOG2E, float("inf"))


def check(
    grid: Grid,
    *,
    width: int = 16,
    value_width: int | None = None,
    config: dict[str, int] | None = None,
    poison: bool = False,
    strided: bool = False,
    save: bool = True,
) -> None:
    """Compares with float64 and with `selected_forward`."""
    torch.manual_seed(0)
    value_width = value_width or width

    def random(*shape: int) -> Tensor:
        x = torch.randn(shape[0], shape[2], shape[1], shape[3]) if strided else torch.randn(shape)
        return (x.transpose(1, 2) if strided else x).to(DEVICE)

    blocks = choose(grid)
    assert (blocks >= 0).sum(-1).max() > FORCED_BLOCKS or grid.geometry.select_count == FORCED_BLOCKS
    q = random(grid.batch, grid.queries, grid.heads, width)
    k = random(grid.batch, grid.keys, grid.kv_heads, width)
    v = random(grid.batch, grid.keys, grid.kv_heads, value_width)
    gates = random(grid.batch, grid.queries, grid.heads, 3).sigmoid()
    o_cmp, o_win = (
        torch.randn(grid.batch, grid.queries, grid.heads, value_width).to(DEVICE) for _ in range(2)
    )
    expected = reference(q, k, v, blocks, gates, o_cmp, o_win, grid)
    if poison:
        ends = grid.ends[:, None]
        behind = torch.arange(grid.keys, device=DEVICE) >= ends
        padding = grid.starts[:, None] + torch.arange(grid.queries, device=DEVICE) >= ends
        k[behind] = v[behind] = float("nan")
        q[padding] = gates[padding] = o_cmp[padding] = o_win[padding] = float("nan")
    inputs = (q, k, v, blocks, gates, o_cmp, o_win, *forced_forward(q, k, v, grid), grid)
    got = selected_forward_by_block(*inputs, save=save, config=CONFIG | (config or {}))
    for name, x, y, z in zip(
        ("out", "own", "lse"), got, expected, selected_forward(*inputs, save=save), strict=True
    ):
        assert x.dtype == z.dtype
        assert x.shape == z.shape
        if name == "out" or save:
            torch.testing.assert_close(x, y.float(), rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
            torch.testing.assert_close(x, z, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("group", [1, 2, 5, 16])
@pytest.mark.parametrize("save", [True, False])
def test_every_group_size(group: int, save: bool) -> None:
    check(make_grid(SMALL, queries=61, group=group), save=save)


@pytest.mark.parametrize(
    ("size", "keys"), [(4, 16), (8, 16), (16, 16), (24, 32), (24, 16), (32, 16), (32, 64)]
)
def test_blocks_of_any_size_whole_or_in_parts(size: int, keys: int) -> None:
    geometry = BlockGeometry(block=8, stride=4, select_block=size, select_count=4, window=12)
    check(make_grid(geometry, queries=30, group=2, kv_heads=1, starts=(5 * size,)), config={"BN": keys})


@pytest.mark.parametrize("size", [16, 32])
def test_keys_in_bulk(size: int) -> None:
    geometry = BlockGeometry(block=8, stride=4, select_block=size, select_count=4, window=12)
    check(make_grid(geometry, queries=30, group=2, starts=(5 * size,)), config={"TMA": 1})


@pytest.mark.parametrize(("width", "value_width"), [(32, 32), (32, 16), (192, 128)])
@pytest.mark.parametrize("keys", [16, 32])
def test_key_and_value_widths_may_differ(width: int, value_width: int, keys: int) -> None:
    geometry = BlockGeometry(block=8, stride=4, select_block=32, select_count=4, window=12)
    grid = make_grid(geometry, queries=19, kv_heads=1, group=2, width=width, starts=(150,))
    check(grid, width=width, value_width=value_width, config={"BN": keys})


def test_rows_start_where_they_start_and_padding_poisons_nothing() -> None:
    check(
        make_grid(SMALL, queries=40, group=3, starts=(0, 13, 39, 70), ends=(21, 53, 79, 70), keys=81),
        poison=True,
    )


@pytest.mark.parametrize(
    "config",
    [
        {"BM": 32, "CHUNK": 8, "PIECE": 3, "ROWS": 32},
        {"BM": 64, "CHUNK": 64, "PIECE": 64, "SLOTS": 8},
        {"CHUNK": 24, "PIECE": 1, "ROWS": 2, "SLOTS": 1},
    ],
)
def test_chunks_and_pieces_change_nothing(config: dict[str, int]) -> None:
    check(make_grid(SMALL, queries=33, kv_heads=1, group=4, starts=(0, 41)), config=config)


def test_heads_may_stand_before_tokens_in_memory() -> None:
    check(make_grid(SMALL, queries=30, group=2, starts=(35, 0)), strided=True)


def test_forced_blocks_alone() -> None:
    geometry = BlockGeometry(block=8, stride=4, select_block=8, select_count=3, window=12)
    check(make_grid(geometry, queries=30, group=2))


def test_the_scratch_buffer_bounds_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = make_grid(SMALL, queries=61, group=2)
    one = grid.heads * 2 * 16 * 4
    monkeypatch.setattr(selected_by_block, "SCRATCH", 5 * one)
    chunks: list[int] = []
    monkeypatch.setattr(
        selected_by_block, "query_lists", lambda *a, **k: chunks.append(k["chunk"]) or query_lists(*a, **k)
    )
    check(grid)
    assert chunks == [4]


def test_lists_of_the_free_blocks() -> None:
    grid = make_grid(SMALL, queries=43, group=1, starts=(0, 17), ends=(43, 40))
    blocks = choose(grid)
    lists = query_lists(blocks, grid, chunk=16, piece=5, free=True)
    count = grid.geometry.select_count
    expected: dict[int, list[int]] = {}
    for b, i, h in (blocks[..., 0] >= 0).nonzero().tolist():
        used = [j for j in blocks[b, i, h].tolist() if j >= 0]
        for slot in range(1, len(used) - 2):
            cell = ((b * grid.kv_heads + h) * lists.chunks + i // 16) * lists.blocks + used[slot]
            expected.setdefault(cell, []).append(i % 16 * count + slot)
    found: dict[int, list[int]] = {}
    ends = lists.piece_ends.tolist()
    for cell, end in enumerate(ends):
        for piece in range(ends[cell - 1] if cell else 0, end):
            assert lists.cells[piece] == cell
            first, size = int(lists.firsts[piece]), int(lists.counts[piece])
            assert 0 < size <= 5
            found.setdefault(cell, []).extend(lists.queries[first : first + size].tolist())
    assert {cell: sorted(members) for cell, members in found.items()} == expected
    assert not lists.counts[ends[-1] :].any()
