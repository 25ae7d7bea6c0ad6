"""Lists of blocks from queries and keys, as the methods choose them: plain torch, on any device.

Nothing here makes a GPU wait. Each function is one published way to choose (what it scores, what it always
keeps), with the sizes as arguments; `nsa_kernels.blocks` attends to what comes out. Scores are rounded once,
to float32 (`nsa_kernels.order_free`), and of equal ones the lower index is taken: what is chosen depends
neither on the pieces in which it was worked out nor on the batch, and is what the methods' own definitions
choose.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels.ahead import real_device
from nsa_kernels.block_lists import BlockLists, pack_members
from nsa_kernels.order_free import CELLS, block_means, products, wide_products

_MOST_INDEX = 2**31 - 1
_SHORT = 512
"""Blocks to a row that is sorted whole."""


def top_indices(scores: Tensor, count: int, *, ordered: bool = True) -> Tensor:
    """Indices of the `count` highest scores of the last axis; of equal ones the lower index.

    Args:
        scores: float32 [..., X]; -inf for what can't be chosen.
        count: At most X.
        ordered: The best come first; else in any order, which is quicker.

    Returns:
        int64 [..., count].
    """
    best = _unique(scores).topk(count, dim=-1, sorted=ordered).values
    return _MOST_INDEX - (best & _MOST_INDEX)


def top_mask(scores: Tensor, count: int) -> Tensor:
    """The same as booleans [..., X]: quick where X is small."""
    keys = _unique(scores)
    # Short rows are sorted several to a program; `topk` has a program for each.
    ranked = keys.sort(dim=-1, descending=True) if keys.shape[-1] <= _SHORT else keys.topk(count, dim=-1)
    return keys >= ranked.values[..., count - 1 : count]


def _unique(scores: Tensor) -> Tensor:
    """int64 keys in the order of the scores, of equal ones the lower index higher; no two are the same."""
    bits = (scores.float() + 0.0).view(torch.int32).long()  # + 0.0: one zero, not two
    rising = torch.where(bits >= 0, bits, bits ^ _MOST_INDEX)  # ordered as the scores are
    index = torch.arange(scores.shape[-1], device=scores.device)
    return (rising << 32) | (_MOST_INDEX - index)


def block_sparse(
    q: Tensor, k: Tensor, *, top: int = 100, block: int = 64, query_block: int | None = None
) -> BlockLists:
    """The block-sparse heads of MInference (arXiv 2407.02490): mean query with mean key of a block.

    Each query head takes for each block of queries the `top` blocks of highest score among those that begin
    at or before it; nothing is forced. Prompts are whole: query i stands at position i.

    Held at a time: some 50 bytes for each of `CELLS` scores, 0.8 GiB at most, beside the lists.

    Args:
        q: [B, N, H, D].
        k: [B, N, H_kv, D].
        top: Blocks of each block of queries.
        block: Queries and keys to a block.
        query_block: Queries to a tile, which divides a block; None = a block.
    """
    means, keys = block_means(q, block), block_means(k, block)
    batch, blocks, heads, _ = means.shape
    step = max(1, CELLS // (batch * heads * blocks))
    parts = []
    for begin in range(0, blocks, step):
        end = min(begin + step, blocks)  # blocks of keys from there on are later than all of this step's
        scores = products(means[:, begin:end], keys[:, :end])  # [B, H, n, end]
        own = torch.arange(begin, end, device=q.device)[:, None]
        scores.masked_fill_(torch.arange(end, device=q.device) > own, -torch.inf)
        best = top_indices(scores, min(top, end), ordered=False)
        best = torch.where(best <= own, best, -1).int()
        parts.append(F.pad(best, (0, min(top, blocks) - best.shape[-1]), value=-1))
    chosen = torch.cat(parts, 2)
    tile = query_block or block
    if tile != block:
        chosen = chosen.repeat_interleave(block // tile, 2)[:, :, : -(-q.shape[1] // tile)]
    return BlockLists.from_blocks(chosen, query_block=tile, key_block=block, distinct=True)


def moba(
    q: Tensor, k: Tensor, *, chunk: int = 4096, top: int = 12, query_block: int = 128, start: int = 0
) -> BlockLists:
    """MoBA (arXiv 2502.13189): each query of each head reads the chunks whose mean key it scores highest.

    The gate is q . mean(k of a chunk); chunks that end after the query are out, and its own is always one of
    the `top`. A tile's list is the union of what its queries chose, its `members` say who chose what: exact,
    and as fast as neighbours agree.

    Held at a time: some 50 bytes for each of `CELLS` scores, 0.8 GiB at most; beside it the members, a bit
    for each query, head and chunk.

    Args:
        q: [B, N, H, D].
        k: [B, S, H_kv, D], the queries' own among them.
        chunk: Tokens to a chunk: a power of 2.
        top: Chunks of each query, its own among them.
        query_block: Queries to a tile.
        start: Position of the first query.
    """
    batch, count, heads, width = q.shape
    means = block_means(k, chunk)
    chunks = means.shape[1]
    step = max(query_block, CELLS // (batch * heads * max(width, chunks)) // query_block * query_block)
    unions, members = [], []
    for begin in range(0, count, step):
        some = q[:, begin : begin + step]
        own = (start + begin + torch.arange(some.shape[1], device=q.device))[:, None] // chunk
        reached = min(chunks, (start + begin + some.shape[1] - 1) // chunk + 1)
        number = torch.arange(reached, device=q.device)
        scores = products(some, means[:, :reached])  # [B, H, n, C]
        scores.masked_fill_(number > own, -torch.inf).masked_fill_(number == own, torch.inf)
        chosen = top_mask(scores, min(top, reached)) & (number <= own)
        chosen = F.pad(chosen, (0, chunks - reached))
        members.append(pack_members(chosen))
        whole = F.pad(chosen, (0, 0, 0, -some.shape[1] % query_block))
        unions.append(whole.unflatten(2, (-1, query_block)).any(3))
    lists = BlockLists.from_mask(torch.cat(unions, 2), query_block=query_block, key_block=chunk)
    return replace(lists, members=torch.cat(members, 2))


def vertical_slash(
    q: Tensor,
    k: Tensor,
    *,
    vertical: int = 1000,
    slash: int = 6096,
    first: int = 30,
    local: int = 100,
    last: int = 64,
    block: int = 64,
    scale: float | None = None,
) -> BlockLists:
    """Vertical-slash heads of MInference (arXiv 2407.02490), read as their kernel reads them.

    Weights of the last queries, summed by column and by diagonal; the `first` columns and the `local` nearest
    diagonals are always chosen before others. Tiles of `block` queries read runs of `block` keys along the
    diagonals, and single columns. Prompts are whole: query i stands at position i.

    Args:
        q: [B, N, H, D].
        k: [B, N, H_kv, D].
        vertical: Columns of each head, `first` at least.
        slash: Diagonals of each head, half of `local` at least.
        first: First columns that are chosen whatever their sums.
        local: Nearest diagonals that are.
        last: Queries whose weights are summed.
        block: Queries to a tile and keys to a run.
        scale: Factor on q.k; None = D ** -0.5.
    """
    last = min(last, q.shape[1])
    columns, offsets = column_and_diagonal_sums(q[:, -last:], k, scale=scale)
    return best_slashes(
        columns, offsets, vertical=vertical, slash=slash, first=first, local=local, block=block
    )


def best_slashes(
    columns: Tensor,
    offsets: Tensor,
    *,
    vertical: int,
    slash: int,
    first: int = 30,
    local: int = 100,
    block: int = 64,
) -> BlockLists:
    """Lists of the columns and diagonals of highest sums, with those that are always chosen.

    Args:
        columns: float32 [B, H, N], sums by key; changed in place.
        offsets: float32 [B, H, N], sums by offset; changed in place.
        vertical: Columns of each head, `first` at least.
        slash: Diagonals of each head, half of `local` at least.
        first: As in `vertical_slash`.
        local: As there.
        block: Queries to a tile and keys to a run.
    """
    tokens = columns.shape[-1]
    columns[..., :first] = torch.inf
    offsets[..., :local] = torch.inf
    chosen = top_indices(columns, min(tokens, max(vertical, first)), ordered=False).sort(-1).values
    slashes = top_indices(offsets, min(tokens, max(slash, local // 2)), ordered=False)
    return lists_of_slashes(chosen, slashes, tokens=tokens, block=block)


def column_and_diagonal_sums(q: Tensor, k: Tensor, *, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Softmax weights of a prompt's last queries, summed over each column and over each diagonal.

    Weights are made and summed in float64, the sums rounded. Held at a time: some six tensors of `CELLS`
    numbers, 0.8 GiB, or of one query head's weights (n * N) where they are more.

    Args:
        q: Its last n queries [B, n, H, D].
        k: All of its keys [B, N, H_kv, D].
        scale: Factor on q.k; None = D ** -0.5.

    Returns:
        float32 [B, H, N] by key, and [B, H, N] by offset t - s.
    """
    batch, count, heads, width = q.shape
    tokens, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    hidden = torch.ones(count, tokens, dtype=torch.bool, device=q.device).triu(tokens - count + 1)
    step = max(1, CELLS // (batch * count * tokens))
    # Whole groups, or an even part of one.
    step = step // group * group or max(part for part in range(1, step + 1) if group % part == 0)
    columns, offsets = [], []
    for begin in range(0, heads, step):
        of_group = slice(begin // group, -(-(begin + step) // group))
        scores = wide_products(q[:, :, begin : begin + step], k[:, :, of_group])  # [B, h, n, N]
        scores *= width**-0.5 if scale is None else scale
        weights = scores.masked_fill_(hidden, -torch.inf).softmax(-1)
        columns.append(weights.sum(2).float())
        # Row i, from its own key backwards, is shifted so that equal offsets stand below each other.
        padded = F.pad(weights.flip(-1), (0, count)).flatten(2)
        skewed = padded[..., : count * (tokens + count - 1)].unflatten(2, (count, tokens + count - 1))
        # In the flipped matrix row i's own key is at column count - 1 - i; the view's rows are a cell short.
        offsets.append(skewed.sum(2)[..., count - 1 : count - 1 + tokens].float())
    return torch.cat(columns, 1), torch.cat(offsets, 1)


def lists_of_slashes(columns: Tensor, slashes: Tensor, *, tokens: int, block: int = 64) -> BlockLists:
    """Runs of keys and single columns of every tile, of chosen columns and diagonals.

    For rows [m, m + block) each offset o < m + block opens the keys [e - block, e), e = max(m + block - o,
    block). In order of e, one that lies further than a run behind the last end opens a new range, and one
    that lies behind it lengthens the range by a run. Columns outside of the ranges are added.

    Args:
        columns: int [B, H, V], ascending, each once.
        slashes: int [B, H, X]: offsets t - s, each once.
        tokens: N.
        block: Queries to a tile and keys to a run.
    """
    tiles = -(-tokens // block)
    reach = tokens + block + 1
    marks = torch.full((*slashes.shape[:2], reach), -1, dtype=torch.int32, device=slashes.device)
    marks.scatter_(-1, slashes.long() + 1, slashes.int())
    below = marks.cummax(-1).values
    columns = columns.int()
    make = _slash_lists_plainly
    if real_device(columns.device).type == "cuda":
        from nsa_kernels.triton.blocks import slash_lists as make
    with torch.cuda.device_of(columns):
        firsts, counts, beside, beside_counts = make(below, columns, tiles=tiles, block=block)
    return BlockLists(
        firsts=firsts,
        counts=counts,
        columns=beside,
        column_counts=beside_counts,
        query_block=block,
        key_block=block,
    )


def _slash_lists_plainly(
    below: Tensor, columns: Tensor, *, tiles: int, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The plain twin of `nsa_kernels.triton.blocks.slash_lists`: all tiles walk along their runs together."""
    batch, heads, _ = below.shape
    bottom = (torch.arange(tiles, device=below.device) + 1) * block
    firsts = torch.full((batch, heads, tiles, tiles + 1), 2**30, dtype=torch.int32, device=below.device)
    counts = torch.zeros(batch, heads, tiles, dtype=torch.int32, device=below.device)
    end = torch.full((batch, heads, tiles), -2 * block, device=below.device)
    offset = below[..., bottom].long()
    for run in range(tiles + 1):
        alive = offset >= 0
        if not bool(alive.any()):
            break
        wanted = (bottom - offset).clamp(min=block)
        end = torch.where(wanted > end + block, wanted, end + block)
        firsts[..., run] = torch.where(alive, end - block, 2**30).int()
        counts += alive.int()
        ahead = bottom - end
        offset = torch.where(alive & (ahead > 0), below.gather(-1, ahead.clamp(min=0)).long(), -1)
    lists = BlockLists(firsts=firsts, counts=counts, query_block=block, key_block=block)
    every = columns[:, :, None].expand(-1, -1, tiles, -1)
    beside = ~lists.covers(every) & (every < bottom[:, None])
    order = (~beside).byte().argsort(dim=-1, stable=True)
    return firsts, counts, every.gather(-1, order), beside.sum(-1, dtype=torch.int32)
