"""Lists of blocks from queries and keys, as the methods choose them: plain torch, on any device.

Nothing here makes a GPU wait. Each function is one published way to choose (what it scores, what it always
keeps), with the sizes as arguments; `nsa_kernels.blocks` attends to what comes out. Prompts are whole: query
i stands at position i.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels.ahead import real_device
from nsa_kernels.block_lists import BlockLists

_CELLS = 2**26
"""Numbers of queries, or of their scores against blocks, that are held at a time."""
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


def block_means(x: Tensor, block: int) -> Tensor:
    """Mean of each block's tokens, the last one's of what it has.

    Args:
        x: [B, N, H, D].
        block: Tokens to a block.

    Returns:
        float32 [B, ceil(N / block), H, D].
    """
    whole = x.shape[1] // block
    means = x[:, : whole * block].unflatten(1, (whole, block)).mean(2, dtype=torch.float32)
    rest = x[:, whole * block :]
    return torch.cat([means, rest.mean(1, keepdim=True, dtype=torch.float32)], 1) if rest.shape[1] else means


def block_sparse(q: Tensor, k: Tensor, *, top: int = 100, block: int = 64) -> BlockLists:
    """The block-sparse heads of MInference (arXiv 2407.02490): mean query with mean key of a block.

    Each query head takes for each block of queries the `top` blocks of highest score among those that begin
    at or before it; nothing is forced.

    Args:
        q: [B, N, H, D].
        k: [B, N, H_kv, D].
        top: Blocks of each tile.
        block: Queries to a tile, and keys to a block.
    """
    scores = _grouped(block_means(q, block), block_means(k, block))  # [B, H, T, T]
    tiles = scores.shape[-1]
    scores.masked_fill_(_later(tiles, scores.device), -torch.inf)
    chosen = top_indices(scores, min(top, tiles), ordered=False)
    own = torch.arange(tiles, device=q.device)[:, None]
    chosen = torch.where(chosen <= own, chosen, -1)
    return BlockLists.from_blocks(chosen, query_block=block, key_block=block, distinct=True)


def moba(q: Tensor, k: Tensor, *, chunk: int = 4096, top: int = 12, query_block: int = 128) -> BlockLists:
    """MoBA (arXiv 2502.13189): each query of each head reads the chunks whose mean key it scores highest.

    The gate is q . mean(k of a chunk) in float32; chunks that end after the query are out, and its own is
    always one of the `top`. A tile's list is the union of what its queries chose, its `members` say who chose
    what: exact, and as fast as neighbours agree.

    Args:
        q: [B, N, H, D].
        k: [B, N, H_kv, D].
        chunk: Tokens to a chunk: a power of 2.
        top: Chunks of each query, its own among them.
        query_block: Queries to a tile.
    """
    batch, count, heads, width = q.shape
    means = block_means(k, chunk)
    chunks = means.shape[1]
    parts = []
    step = max(query_block, _CELLS // (batch * heads * max(width, chunks)) // query_block * query_block)
    for begin in range(0, count, step):
        some = q[:, begin : begin + step].float()
        scores = _grouped(some, means)  # [B, H, n, C]
        own = torch.arange(begin, begin + some.shape[1], device=q.device)[:, None] // chunk
        number = torch.arange(chunks, device=q.device)
        scores = scores.masked_fill(number > own, -torch.inf).masked_fill(number == own, torch.inf)
        parts.append(top_mask(scores, min(top, chunks)) & (number <= own))
    chosen = torch.cat(parts, 2)
    tiles = -(-count // query_block)
    padded = F.pad(chosen, (0, 0, 0, tiles * query_block - count))
    union = padded.unflatten(2, (tiles, query_block)).any(3)
    return BlockLists.from_mask(union, query_block=query_block, key_block=chunk).with_members(chosen)


def vertical_slash(
    q: Tensor, k: Tensor, *, vertical: int = 1000, slash: int = 6096, last: int = 64, block: int = 64
) -> BlockLists:
    """Vertical-slash heads of MInference (arXiv 2407.02490), read as their kernel reads them.

    P of the last queries, summed by column and by diagonal; the first 30 columns and the last 100 diagonals
    are always chosen. Tiles of 64 queries read runs of 64 keys along the diagonals, and single columns.

    Args:
        q: [B, N, H, D].
        k: [B, N, H_kv, D].
        vertical: Columns of each head, 30 at least.
        slash: Diagonals of each head, 50 at least.
        last: Queries whose weights are summed.
        block: Queries to a tile and keys to a run.
    """
    last = min(last, q.shape[1])
    columns, offsets = column_and_diagonal_sums(q[:, -last:], k)
    return best_slashes(columns, offsets, vertical=vertical, slash=slash, block=block)


def best_slashes(
    columns: Tensor, offsets: Tensor, *, vertical: int, slash: int, block: int = 64
) -> BlockLists:
    """Lists of the columns and diagonals of highest sums, with those that are always chosen.

    Args:
        columns: float32 [B, H, N], sums by key; changed in place.
        offsets: float32 [B, H, N], sums by offset; changed in place.
        vertical: Columns of each head, 30 at least.
        slash: Diagonals of each head, 50 at least.
        block: Queries to a tile and keys to a run.
    """
    tokens = columns.shape[-1]
    columns[..., :30] = torch.inf
    offsets[..., :100] = torch.inf
    chosen = top_indices(columns, min(tokens, max(vertical, 30)), ordered=False).sort(-1).values
    slashes = top_indices(offsets, min(tokens, max(slash, 50)), ordered=False)
    return lists_of_slashes(chosen, slashes, tokens=tokens, block=block)


def column_and_diagonal_sums(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax weights of a prompt's last queries, summed over each column and over each diagonal.

    Args:
        q: Its last n queries [B, n, H, D].
        k: All of its keys [B, N, H_kv, D].

    Returns:
        float32 [B, H, N] by key, and [B, H, N] by offset t - s.
    """
    count, tokens = q.shape[1], k.shape[1]
    scores = _grouped(q.float(), k.float()) * q.shape[-1] ** -0.5  # [B, H, n, N]
    hidden = torch.ones(count, tokens, dtype=torch.bool, device=q.device).triu(tokens - count + 1)
    weights = scores.masked_fill_(hidden, -torch.inf).softmax(-1)
    columns = weights.sum(2)
    # Row i, from its own key backwards, is shifted so that equal offsets stand below each other.
    padded = F.pad(weights.flip(-1), (0, count)).flatten(2)
    skewed = padded[..., : count * (tokens + count - 1)].unflatten(2, (count, tokens + count - 1))
    # In the flipped matrix row i's own key is at column count - 1 - i; a row of the view is one cell shorter.
    return columns, skewed.sum(2)[..., count - 1 : count - 1 + tokens]


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


def _grouped(q: Tensor, k: Tensor) -> Tensor:
    """float32 products [B, H, n, X] of q [B, n, H, D] with k [B, X, H_kv, D] of each head's group."""
    batch, count, heads, width = q.shape
    kv_heads = k.shape[2]
    folded = q.transpose(1, 2).reshape(batch, kv_heads, heads // kv_heads * count, width)
    product: Tensor = folded @ k.permute(0, 2, 3, 1)
    return product.view(batch, heads, count, -1)


def _later(tiles: int, device: torch.device) -> Tensor:
    return torch.ones(tiles, tiles, dtype=torch.bool, device=device).triu(1)
