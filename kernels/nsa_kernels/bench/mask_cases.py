"""Kernel by mask: the same attention by every kernel that has the mask.

All masks but block-sparse ones are intervals: query t sees the keys from low[t] up to high[t], both rising.
From them follow the lists of this package and FlexAttention's block masks alike. Block-sparse masks keep a
random share of all blocks in each row of blocks, without causality.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from nsa_kernels.bench import dense
from nsa_kernels.bench.block_result import BlockSettings
from nsa_kernels.blocks import BlockLists, block_attention
from nsa_kernels.compression import compress_mean
from nsa_kernels.dispatch import nsa_attention
from nsa_kernels.geometry import BlockGeometry

DOCUMENT = 4096
"""Mean length of a document, in tokens: lengths are drawn evenly around it."""

Attend = Callable[[], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """One mask of N queries and N keys."""

    name: str
    pairs: int
    """Query-key pairs that it keeps."""
    low: Tensor | None = None
    """[N] int32; None for block-sparse masks."""
    high: Tensor | None = None
    blocks: Tensor | None = None
    """Booleans [T, T] of a block-sparse mask."""
    edges: Tensor | None = None
    """[documents + 1] int32 of a document mask."""


@dataclass(slots=True)
class Inputs:
    """One sequence, in the layouts that the kernels take."""

    q: Tensor
    """[1, N, H, D]."""
    k: Tensor
    v: Tensor
    settings: BlockSettings

    def __post_init__(self) -> None:
        """Heads in front as well, contiguous."""
        self.first = tuple(dense.heads_first(x) for x in (self.q, self.k, self.v))

    first: tuple[Tensor, ...] = ()
    """q, k, v [1, H, N, D]."""


def masks(length: int, settings: BlockSettings, device: torch.device) -> Iterator[Mask]:
    """All masks of the table."""
    at = torch.arange(length, dtype=torch.int32, device=device)
    none, every = torch.zeros_like(at), torch.full_like(at, length)
    yield Mask(name="full", pairs=length**2, low=none, high=every)
    yield Mask(name="causal", pairs=length * (length + 1) // 2, low=none, high=at + 1)
    edges = _documents(length, settings.seed)
    begins = torch.tensor(edges, dtype=torch.int32, device=device)
    own = begins[torch.searchsorted(begins, at, right=True) - 1]
    pairs = sum((b - a) * (b - a + 1) // 2 for a, b in pairwise(edges))
    yield Mask(name=f"document {len(edges) - 1}", pairs=pairs, low=own, high=at + 1, edges=begins)
    window = min(settings.window, length)
    yield Mask(
        name=f"sliding {settings.window}",
        pairs=window * (window + 1) // 2 + (length - window) * window,
        low=(at - window + 1).clamp(min=0),
        high=at + 1,
    )
    tiles = -(-length // settings.block)
    sizes = [min(settings.block, length - i * settings.block) for i in range(tiles)]
    size = torch.tensor(sizes, device=device)
    for density in settings.densities:
        kept = max(1, round(density * tiles))
        order = torch.rand(tiles, tiles, generator=torch.Generator().manual_seed(settings.seed)).argsort(-1)
        blocks = torch.zeros(tiles, tiles, dtype=torch.bool).scatter_(1, order[:, :kept], True).to(device)
        pairs = int((blocks * size * size[:, None]).sum())
        yield Mask(name=f"block-sparse {density:g}", pairs=pairs, blocks=blocks)


def contenders(mask: Mask, x: Inputs, *, flex: bool) -> dict[str, Callable[[], Attend]]:
    """Name -> what makes the attention ready (lists and block masks are not timed here), for one mask."""
    made: dict[str, Callable[[], Attend]] = {}
    q, k, v = x.first
    if mask.name in ("full", "causal"):
        for name, backend in dense.sdpa_backends(q.device).items():
            made[f"sdpa {name}"] = functools.partial(_sdpa, q, k, v, backend, mask.name == "causal")
    elif q.is_cuda and mask.blocks is None:
        made["flash"] = lambda: _flash(mask, x)
    made["lists"] = lambda: by_lists(mask, x)
    if mask.name.startswith("sliding") and q.is_cuda:
        made["window"] = lambda: window(x)
    if mask.name == "causal":
        made["nsa"] = lambda: nsa(x)
    if flex:
        made["flex"] = lambda: by_flex(mask, x)
    return made


def by_lists(mask: Mask, x: Inputs) -> Attend:
    """This package's kernel over lists, [1, N, H, D]."""
    block, length = x.settings.block, x.q.shape[1]
    blocks = mask.blocks
    if blocks is None:
        blocks = _kinds(mask, block, length)[0]
    causal = mask.name != "full" and mask.blocks is None
    bounded = causal and mask.name != "causal"
    low = None if not bounded or mask.low is None else mask.low[None].contiguous()
    lists = BlockLists.from_mask(blocks[None, None], query_block=block, key_block=block)
    return lambda: block_attention(x.q, x.k, x.v, lists, low=low, causal=causal).out


def by_flex(mask: Mask, x: Inputs) -> Attend:
    """torch's FlexAttention, compiled where there is a GPU, [1, H, N, D]."""
    q, k, v = x.first
    attention, grouped = _flex(q.is_cuda), q.shape[1] != k.shape[1]
    block_mask = flex_mask(mask, x.settings.block, q.shape[2])
    return lambda: attention(q, k, v, block_mask=block_mask, enable_gqa=grouped)


def flex_mask(mask: Mask, block: int, length: int) -> Any:  # noqa: ANN401 - torch's BlockMask
    """A mask as FlexAttention takes it: blocks seen in part, blocks seen whole, what decides in the former.

    The same function for all intervals, so that it is compiled once.
    """
    from torch.nn.attention.flex_attention import BlockMask

    low, high, blocks = mask.low, mask.high, mask.blocks
    if blocks is None:
        assert low is not None
        assert high is not None
        touched, full = _kinds(mask, block, length)

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key >= low[query]) & (key < high[query])
    else:
        touched = full = blocks

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return blocks[query // block, key // block]

    return BlockMask.from_kv_blocks(
        *_numbered(touched & ~full),
        *_numbered(full),
        BLOCK_SIZE=block,
        mask_mod=visible,
        seq_lengths=(length, length),
    )


@functools.cache
def _flex(compiled: bool) -> Any:  # noqa: ANN401 - one of two functions of torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def _sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend, causal: bool) -> Attend:
    if causal:
        return dense.prefill(q, k, v, backend)
    grouped = q.shape[1] != k.shape[1]

    def attend() -> Tensor:
        with dense.only(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)

    return attend


def _flash(mask: Mask, x: Inputs) -> Attend:
    """torch's flash attention with its own window, or over documents that lie behind each other."""
    length = x.q.shape[1]

    def attend() -> Tensor:
        if mask.edges is None:
            out = torch.ops.aten._flash_attention_forward(
                x.q, x.k, x.v, None, None, length, length, 0.0, True, False,
                window_size_left=x.settings.window - 1, window_size_right=0,
            )  # fmt: skip
        else:
            out = torch.ops.aten._flash_attention_forward(
                x.q[0], x.k[0], x.v[0], mask.edges, mask.edges, longest, longest, 0.0, True, False
            )
        result: Tensor = out[0]
        return result

    longest = 0 if mask.edges is None else int((mask.edges[1:] - mask.edges[:-1]).max())
    return attend


def window(x: Inputs) -> Attend:
    """The window branch of this package's NSA alone."""
    from nsa_kernels.triton.function import make_grid
    from nsa_kernels.triton.prefill.window import window_forward
    from nsa_kernels.types import Caches

    geometry = BlockGeometry(window=x.settings.window)
    caches = Caches(x.k[:, :0], x.v[:, :0], x.k, x.v, x.k, x.v)
    scale = x.q.shape[-1] ** -0.5
    grid = make_grid(x.q, caches, geometry=geometry, start=0, lengths=None, scale=scale)
    return lambda: window_forward(x.q, x.k, x.v, grid)[0]


def nsa(x: Inputs) -> Attend:
    """NSA with the paper's blocks, compression and gates included."""
    geometry = BlockGeometry()
    gates = torch.full((*x.q.shape[:3], 3), 0.5, dtype=x.q.dtype, device=x.q.device)

    def attend() -> Tensor:
        k_cmp, v_cmp = compress_mean(x.k, geometry), compress_mean(x.v, geometry)
        return nsa_attention(x.q, k_cmp, v_cmp, x.k, x.v, x.k, x.v, gates, geometry=geometry).out

    return attend


def _kinds(mask: Mask, block: int, length: int) -> tuple[Tensor, Tensor]:
    """Of an interval mask: blocks [T, T] that any query sees a key of, and those that all see whole."""
    assert mask.low is not None
    assert mask.high is not None
    tiles = -(-length // block)
    first = torch.arange(tiles, device=mask.low.device) * block
    last = (first + block).clamp(max=length)
    # Both bounds rise, so that a tile's first and last query have its extremes.
    lowest, highest = mask.low[first], mask.high[last - 1]
    touched = (first < highest[:, None]) & (last > lowest[:, None])
    whole = (first >= mask.low[last - 1][:, None]) & (last <= mask.high[first][:, None])
    return touched, touched & whole


def _numbered(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [1, 1, T] and numbers [1, 1, T, T], those that are kept first."""
    numbers = (~mask).byte().argsort(dim=-1, stable=True)
    return mask.sum(-1, dtype=torch.int32)[None, None], numbers.int()[None, None].contiguous()


def _documents(length: int, seed: int) -> list[int]:
    """Where documents begin, and the end."""
    pick = torch.Generator().manual_seed(seed)
    edges = [0]
    while edges[-1] < length:
        size = int(torch.randint(DOCUMENT // 8, 2 * DOCUMENT, (), generator=pick))
        edges.append(min(length, edges[-1] + size))
    return edges
