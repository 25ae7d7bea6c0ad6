"""Softmax attention over keys that lie in several places: parts with their log-sum-exp, merged.

What a query sees may be cut into parts at will: each gives an output and the log-sum-exp of its scores, and
from those the whole output follows. So rows that share a prefix read one copy of it, wherever it lies, and no
mask and no repeated KV head is needed. On a GPU the parts come from cuDNN's and flash attention's kernels, as
torch has them; one kernel of this project merges them, and one reads all of a row's keys for a single query
(`decode_spans`), which torch has no kernel for.

Layouts are [tokens, heads, width] throughout. Grouped query heads (H a multiple of H_kv) everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 64
"""Keys of a tile of a `SpanTable`."""
_PLAIN_CELLS = 2**24
"""Scores that the plain twin holds at a time."""
_FLASH_WIDTH = 256
"""Widest head of torch's flash attention."""
# cuDNN plans each shape anew, in some 45 ms, so only sizes that come again and again go there: many queries,
# and keys in a power of 2. Measured on an H200 with 32 heads of 64 and 8 KV heads: 8,192 queries against
# 65,536 keys take 8.6 ms so, 13.3 ms with flash attention.
_CUDNN_QUERIES = 4096
_CUDNN_KEYS = 1024
_CUDNN_WIDTH = 128


@dataclass(frozen=True, slots=True)
class Part:
    """What some queries get from some of their keys."""

    out: Tensor
    """[N, H, D_v]."""
    lse: Tensor
    """[H, N] float32: log of the sum of the exponentiated scores; -inf where a query sees no key."""


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None = None) -> Part:
    """Attention of N queries to S keys that all of them see, or (causal) of N tokens to themselves.

    Args:
        q: [N, H, D_k].
        k: [S, H_kv, D_k]; S = N when causal.
        v: [S, H_kv, D_v].
        causal: Query i sees keys 0 to i alone.
        scale: Factor on q.k; None = D_k ** -0.5.
    """
    if not takes_flash(q, v):
        return attend_plainly(q, k, v, causal=causal, scale=scale)
    queries, keys = q.shape[0], k.shape[0]
    given = tuple(x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, N, D]
    if queries % _CUDNN_QUERIES == 0 and (keys & (keys - 1) == 0 or causal) and takes_cudnn(q):
        out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *given, None, True, 0.0, causal, False, scale=scale
        )[:2]
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(
            *given, 0.0, causal, False, scale=scale
        )[:2]
    return Part(out[0].transpose(0, 1), lse.reshape(q.shape[1], queries))


def attend_pieces(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    queries: Sequence[int],
    keys: Sequence[int],
    causal: bool,
    scale: float | None = None,
    edges: tuple[Tensor, Tensor] | None = None,
) -> Part:
    """The same for pieces that lie one behind another: piece i's queries see piece i's keys.

    Args:
        q: [sum of queries, H, D_k].
        k: [sum of keys, H_kv, D_k].
        v: [sum of keys, H_kv, D_v].
        queries: Queries of each piece.
        keys: Keys of each piece; the same numbers when causal.
        causal: As for `attend`.
        scale: As for `attend`.
        edges: `piece_edges` of queries and keys on the device, where they are at hand.
    """
    if len(queries) == 1:
        return attend(q, k, v, causal=causal, scale=scale)
    if takes_flash(q, v):
        q_edges, k_edges = edges or (piece_edges(queries, q.device), piece_edges(keys, q.device))
        out, lse = torch.ops.aten._flash_attention_forward(
            q, k, v, q_edges, k_edges, max(queries), max(keys), 0.0, causal, False, scale=scale
        )[:2]
        return Part(out, lse)
    out = q.new_empty(*q.shape[:2], v.shape[-1])
    lse = torch.empty(q.shape[1], q.shape[0], device=q.device)
    begin = key = 0
    for size, width in zip(queries, keys, strict=True):
        some, read = slice(begin, begin + size), slice(key, key + width)
        part = attend_plainly(q[some], k[read], v[read], causal=causal, scale=scale)
        out[some], lse[:, some] = part.out, part.lse
        begin, key = begin + size, key + width
    return Part(out, lse)


def piece_edges(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Where pieces begin and end: int32 [pieces + 1], from 0."""
    edges = torch.zeros(len(sizes) + 1, dtype=torch.int32)
    edges[1:] = torch.tensor(sizes, dtype=torch.int32).cumsum(0)
    return edges.to(device, non_blocking=True)


class Merger:
    """Adds up the parts of N queries, each part for some of them."""

    def __init__(self, first: Part) -> None:
        """Args: `first` is a part of all N queries."""
        self.out = first.out.float()
        self.lse = first.lse.float().contiguous()

    def add(self, part: Part, where: slice | Tensor) -> None:
        """Add a part.

        Args:
            part: Of n queries.
            where: Which ones: a slice of length n, or their numbers [n], each once.
        """
        if self.out.is_cuda:
            from nsa_kernels.triton.spans import merge_into

            with torch.cuda.device_of(self.out):
                merge_into(self.out, self.lse, part.out, part.lse, where)
        else:
            merge_plainly(self.out, self.lse, part.out, part.lse, where)


def merge_plainly(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor, where: slice | Tensor) -> None:
    """The plain twin of `merge_into`: float32 out [N, H, D_v] and lse [H, N], changed in place."""
    before, whole = lse[:, where], torch.logaddexp(lse[:, where], part_lse.float())
    seen = whole > -torch.inf
    share = torch.where(seen, (part_lse.float() - whole).exp(), 0.0)
    kept = torch.where(seen, (before - whole).exp(), 0.0)
    out[where] = out[where] * kept.T[..., None] + part.float() * share.T[..., None]
    lse[:, where] = whole


def attend_plainly(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None = None) -> Part:
    """The plain twin of `attend`, in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    heads, groups, keys = q.shape[1], k.shape[1], k.shape[0]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    outs, sums = [], []
    step = max(1, _PLAIN_CELLS // (heads * max(1, keys)))
    columns = torch.arange(keys, device=q.device)
    for begin in range(0, q.shape[0], step):
        some = q[begin : begin + step].to(wide).unflatten(1, (groups, heads // groups)) * scale
        scores = torch.einsum("nghd,sgd->ghns", some, k.to(wide))
        if causal:
            rows = torch.arange(begin, begin + some.shape[0], device=q.device)
            scores.masked_fill_(columns > rows[:, None], -torch.inf)
        outs.append(torch.einsum("ghns,sgd->nghd", scores.softmax(-1), v.to(wide)).flatten(1, 2))
        sums.append(scores.logsumexp(-1).flatten(0, 1))
    return Part(torch.cat(outs).to(q.dtype), torch.cat(sums, -1))


def query_pieces(queries: int, keys: int) -> list[int]:
    """Sizes in which queries read a span of keys, so that most of them have a size that cuDNN has met."""
    rest = queries % _CUDNN_QUERIES
    if keys < _CUDNN_KEYS or rest == queries or not rest:
        return [queries]
    return [queries - rest, rest]


def key_pieces(keys: int, queries: int) -> list[int]:
    """Sizes of the pieces in which some queries read a span of keys: powers of 2 and a rest, or one."""
    if queries % _CUDNN_QUERIES or keys < _CUDNN_KEYS:
        return [keys]
    pieces, rest = [], keys % _CUDNN_KEYS
    keys -= rest
    while keys:
        pieces.append(1 << (keys.bit_length() - 1))
        keys -= pieces[-1]
    return pieces + ([rest] if rest else [])


def takes_cudnn(q: Tensor) -> bool:
    """Whether cuDNN's kernels take such heads, of those that flash attention takes."""
    return q.shape[-1] <= _CUDNN_WIDTH and torch.backends.cuda.cudnn_sdp_enabled()


def takes_flash(q: Tensor, v: Tensor) -> bool:
    """Whether torch's flash attention takes such heads as they are."""
    width = q.shape[-1]
    return (
        q.is_cuda
        and q.dtype in (torch.float16, torch.bfloat16)
        and width == v.shape[-1] <= _FLASH_WIDTH
        and width % 8 == 0
        and not torch.is_grad_enabled()
        and torch.backends.cuda.flash_sdp_enabled()
        and _ampere(q.device)
    )


@functools.cache
def _ampere(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanTable:
    """Where the keys and values of R rows lie, in tiles of up to `TILE` tokens: of one layer, for decode.

    A row's tiles are those of what it shares with others, and behind them those of its tail, which grows by a
    token a step. On the device nothing but the tails' lengths changes from step to step, so a step can be
    replayed from a CUDA graph. The owner of the table keeps the tensors alive that it points to.
    """

    k: Tensor
    """[R, tiles] int64: address of a tile's first token in keys [tokens, H_kv, D_k], contiguous."""
    v: Tensor
    """[R, tiles] int64: the same in values [tokens, H_kv, D_v]."""
    sizes: Tensor
    """[R, tiles] int32: tokens of each tile before the tail's first."""
    tails: Tensor
    """[R] int32: number of the tail's first tile."""
    lengths: Tensor
    """[R] int32: tokens of the tail; a row without any tiles and tokens gets zeros."""


def decode_spans(
    q: Tensor, table: SpanTable, *, kv_heads: int, v_width: int, scale: float | None = None
) -> Tensor:
    """Attention of one query a row to all of its keys.

    Args:
        q: [R, H, D_k].
        table: Where each row's keys and values lie, in q's dtype.
        kv_heads: H_kv.
        v_width: D_v.
        scale: Factor on q.k; None = D_k ** -0.5.

    Returns:
        [R, H, D_v].
    """
    from nsa_kernels.triton import spans

    return spans.decode(q, table, kv_heads=kv_heads, v_width=v_width, scale=scale)
