"""Attention by lists of key blocks: lists in, attention out, whatever method made the lists.

`block_attention` is causal attention of many queries whose tiles read blocks of keys (and single keys);
`page_decode` is one query a row that reads pages of its cache. Both take grouped query heads, rows of unequal
length and calls that continue a cache. On a GPU Triton kernels read what the lists name and nothing else;
the plain twin, which masks, runs everywhere and is what they are tested against. Forward only.

Example:
    >>> lists = BlockLists.from_mask(chosen, query_block=64, key_block=64)
    >>> out, lse = block_attention(q, k, v, lists)
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from nsa_kernels.ahead import real_device
from nsa_kernels.block_lists import BlockLists, PageLists
from nsa_kernels.dispatch import choose_backend, get_backend

__all__ = [
    "BlockLists",
    "BlockOutput",
    "PageLists",
    "block_attention",
    "choose_block_backend",
    "page_decode",
]

_BACKENDS = {"torch": "nsa_kernels.torch_.blocks", "triton": "nsa_kernels.triton.blocks"}


class BlockOutput(NamedTuple):
    """Result of `block_attention`."""

    out: Tensor
    """[B, N, H, D_v] in the dtype of q; 0 where a query sees nothing, and at padding."""
    lse: Tensor
    """[B, N, H] float32: log of the sum of the exponentiated scores, -inf where nothing is seen: from it
    parts of an attention add up (`nsa_kernels.spans.Merger`)."""


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    *,
    start: int | Tensor = 0,
    lengths: Tensor | None = None,
    low: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    backend: str = "auto",
) -> BlockOutput:
    """Attention of a run of queries to the keys of their tiles' lists: prefill, whole or in pieces.

    Query i of row b stands at position start[b] + i; key s at position s.

    Args:
        q: Queries [B, N, H, D_k].
        k: Keys [B, S, H_kv, D_k], the queries' own among them.
        v: Values [B, S, H_kv, D_v].
        lists: Blocks of each tile; T = ceil(N / query_block).
        start: Position of the first query: one for all rows, or integers [B].
        lengths: Valid tokens of each row, integers [B]; None = S. What stands behind influences nothing.
        low: [B, N] int32: the first key that a query may see, of a window or a document; None = 0.
        causal: Queries see nothing behind themselves. False: all keys of the lists up to `lengths`.
        scale: Factor on q.k; None = D_k ** -0.5.
        backend: "auto" (triton on a GPU in 16 bits where no gradients are asked for, else torch), "torch"
            or "triton".

    Raises:
        ValueError: Shapes that don't fit, or gradients asked of the kernel, which has no backward. With torch
            also lists that `BlockLists.check` refuses; with triton those give NaN.
        BackendUnavailableError: The backend can't run here.
    """
    _check(q, k, v, (lists.firsts, lists.counts), rank=4)
    batch, count, heads, _ = q.shape
    if lists.firsts.shape[2] != -(-count // lists.query_block):
        raise ValueError(
            f"{count} queries are {-(-count // lists.query_block)} tiles of {lists.query_block}, and the "
            f"lists have {lists.firsts.shape[2]}"
        )
    members = lists.members
    if members is not None and tuple(members.shape[:3]) != (batch, heads, count):
        raise ValueError(f"members must be [B, H, N, words], got {list(members.shape)}")
    if low is not None and (tuple(low.shape) != (batch, count) or low.dtype != torch.int32):
        raise ValueError(f"low must be int32 [B, N] = {[batch, count]}, got {list(low.shape)} of {low.dtype}")
    if isinstance(start, int) and lengths is None and causal and start + count > k.shape[1]:
        raise ValueError(
            f"the queries stand at {start}..{start + count - 1} but k holds {k.shape[1]} tokens: append the "
            "queries' own keys first, or pass lengths if the queries are padded"
        )
    module = backend_module(backend, q, k, v)
    with torch.cuda.device_of(q):
        out, lse = module.prefill(
            q, k, v, lists, start=_rows(start, batch, q.device), ends=_ends(lengths, k), low=low,
            causal=causal, scale=q.shape[-1] ** -0.5 if scale is None else scale,
        )  # fmt: skip
    return BlockOutput(out, lse)


def page_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: PageLists,
    *,
    lengths: Tensor,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of one query a row to the pages of its lists.

    Args:
        q: Queries [B, H, D_k].
        k: Cached keys [B, S, H_kv, D_k], in any layout whose last dimension is contiguous.
        v: Cached values [B, S, H_kv, D_v].
        lists: Pages of each query head (L = H), KV head (H_kv), or of all (1).
        lengths: Tokens in each row's cache, integers [B]; a row of length 0 gives 0.
        scale: Factor on q.k; None = D_k ** -0.5.
        backend: As for `block_attention`.

    Returns:
        [B, H, D_v] in the dtype of q.

    Raises:
        ValueError: Shapes that don't fit, or gradients asked of the kernel. With torch also lists that
            `PageLists.check` refuses; the kernel counts a key as often as it is named.
        BackendUnavailableError: The backend can't run here.
    """
    if q.dim() != 3:
        raise ValueError(f"q must be [B, H, D_k], got {list(q.shape)}")
    _check(q.unsqueeze(1), k, v, (lists.firsts, lists.counts), rank=3)
    module = backend_module(backend, q, k, v)
    with torch.cuda.device_of(q):
        out: Tensor = module.decode(
            q, k, v, lists, lengths=_ends(lengths, k),
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
        )  # fmt: skip
    return out


def choose_block_backend(
    device: torch.device, dtype: torch.dtype, *, width: int, value_width: int | None = None
) -> str:
    """What "auto" means for such tensors where no gradients are asked for: triton or torch.

    Args:
        device: Where the tensors are.
        dtype: Of the tensors; triton is for those of 16 bits.
        width: D_k; triton takes powers of 2 from 16 to 128.
        value_width: D_v; None = D_k.
    """
    widths = (width, width if value_width is None else value_width)
    return choose_backend(device, dtype, width=max(widths)) if _fits(*widths) else "torch"


def _check(q: Tensor, k: Tensor, v: Tensor, lists: tuple[Tensor, Tensor], *, rank: int) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        shapes = [list(x.shape) for x in (q, k, v)]
        raise ValueError(f"q must be [B, N, H, D_k], k and v [B, S, H_kv, D], got {shapes}")
    batch, count, heads, width = q.shape
    kv_heads = k.shape[2]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"query heads must be a multiple of KV heads, got H = {heads} and H_kv = {kv_heads}")
    if count == 0:
        raise ValueError("q holds no queries: N must be at least 1")
    if k.shape[0] != batch or k.shape[3] != width or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"k must be [{batch}, S, H_kv, {width}] and v the same but for its width, got {list(k.shape)} "
            f"and {list(v.shape)}"
        )
    if any(x.device != q.device for x in (k, v, *lists)):
        raise ValueError(f"q is on {q.device}: keys, values and lists must be there too")
    found = lists[0].shape[1]
    if lists[0].shape[0] != batch or found not in (1, kv_heads, heads):
        raise ValueError(
            f"lists must be [B, L, ...] with B = {batch} and one of L = {heads} (query heads), {kv_heads} "
            f"(KV heads) or 1, got {list(lists[0].shape[: rank - 1])}"
        )


def _rows(x: int | Tensor, batch: int, device: torch.device) -> Tensor:
    """int32 [B]."""
    if isinstance(x, int):
        return torch.full((batch,), x, dtype=torch.int32, device=device)
    if tuple(x.shape) != (batch,) or x.is_floating_point():
        raise ValueError(f"start and lengths must be integers [B] = [{batch}], got {list(x.shape)}")
    return x.to(device=device, dtype=torch.int32)


def _ends(lengths: Tensor | None, k: Tensor) -> Tensor:
    batch, size = k.shape[:2]
    ends = _rows(size if lengths is None else lengths, batch, k.device)
    return ends if lengths is None else ends.clamp(max=size)


def backend_module(name: str, q: Tensor, k: Tensor, v: Tensor) -> ModuleType:
    """What runs calls of such tensors, by the name of a backend or "auto".

    Raises:
        ValueError: An unknown name, gradients asked of the kernels, or heads that they don't take.
        BackendUnavailableError: The backend can't run here.
    """
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if name == "auto":
        chosen = choose_block_backend(
            real_device(q.device), q.dtype, width=q.shape[-1], value_width=v.shape[-1]
        )
        name = "torch" if gradients else chosen
    if name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}: choose auto, {', '.join(_BACKENDS)}")
    if name == "triton" and gradients:
        raise ValueError("attention by lists has no backward kernel: use torch.no_grad(), or backend='torch'")
    if name == "triton" and not _fits(q.shape[-1], v.shape[-1]):
        raise ValueError(
            f"the kernels take heads of a power of 2 from 16 on, got {q.shape[-1]} and {v.shape[-1]}; use "
            "backend='torch'"
        )
    get_backend(name)  # says why it can't run here
    return importlib.import_module(_BACKENDS[name])


def _fits(*widths: int) -> bool:
    return all(width >= 16 and width & (width - 1) == 0 for width in widths)
