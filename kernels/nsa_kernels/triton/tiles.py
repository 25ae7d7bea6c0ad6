"""What all kernels share: the padded sizes of a tile, and the inputs of one call as a kernel sees them.

Query tiles are packed: a tile holds BQ neighbouring queries with all heads of one group, GP = G padded to a
power of 2, as BQ * GP rows (row = query * GP + head). The rows then share every key that is loaded, and a
gradient summed over the rows is summed over the group.

A width that is no power of 2 is cut in two that are (192 = 128 + 64): MAIN + REST, REST = 0 where there is
none.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nsa_kernels.ahead import real_device
from nsa_kernels.geometry import BlockGeometry

LOG2E = 1.4426950408889634
"""Kernels exponentiate with base 2: a score in units of log2 is q.k * scale * LOG2E."""
MIN_DOT = 16
"""The smallest side of a matrix product in Triton."""
MAX_GROUP = 128
"""Query heads to one KV head that a tile can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where the rows of a call stand, and its sizes: what is known without looking at the keys."""

    geometry: BlockGeometry
    starts: Tensor
    """Position of each row's first query, int32 [B]; never negative."""
    ends: Tensor
    """Valid tokens of each row, int32 [B], at most S."""
    batch: int
    queries: int
    """N."""
    keys: int
    """S."""
    heads: int
    kv_heads: int
    scale: float
    longest: int
    """A bound on the tokens that any query sees, known on the host: min(S, start + N) or S."""
    padded: bool
    """Whether rows may end before S, or start at different positions."""

    @property
    def group(self) -> int:
        """G, query heads to a KV head."""
        return self.heads // self.kv_heads

    @property
    def padded_group(self) -> int:
        """GP."""
        return int(triton.next_power_of_2(self.group))

    @property
    def scale_log2(self) -> float:
        """Factor from q.k to scores in units of log2."""
        return self.scale * LOG2E


def split_width(width: int) -> tuple[int, int]:
    """MAIN and REST of a head dimension.

    Raises:
        ValueError: The dimension is no sum of two powers of 2 from 16 on.
    """
    main = 1 << (width.bit_length() - 1)
    rest = width - main
    if main < MIN_DOT or (rest and (rest < MIN_DOT or rest & (rest - 1))):
        raise ValueError(
            f"head dimension {width} is no power of 2 and no sum of two, each at least {MIN_DOT}"
        )
    return main, rest


def queries_per_tile(rows: int, grid: Grid) -> int:
    """BQ for a tile of about `rows` rows: a power of 2, at least 1."""
    return max(1, rows // grid.padded_group)


@triton.jit
def row_pointers(pointer, tile, row, stride_n, stride_h, BQ: tl.constexpr, GP: tl.constexpr):
    """Pointers to the rows of a packed tile [BQ * GP] of a tensor [N, H, ...]; `pointer` stands at the group.

    The tile's own offset is 64-bit; inside a tile 32 bits are enough.
    """
    first = wide(tile) * BQ * stride_n
    return pointer + first + (row // GP) * stride_n + (row % GP).to(tl.int64) * stride_h


@triton.jit
def blocks_before(tokens, BLOCK: tl.constexpr, STRIDE: tl.constexpr):
    """Complete compression blocks in the first `tokens` tokens: max(0, (tokens - l) // d + 1)."""
    return tl.where(tokens >= BLOCK, (tokens - BLOCK) // STRIDE + 1, 0)


def precision(x: Tensor) -> str:
    """`input_precision` of the matrix products: exact for float32, whatever the hardware has below."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def launch_options(config: Mapping[str, int]) -> dict[str, int]:
    """What a launch takes besides the kernel's own parameters."""
    return {name: config[name] for name in ("num_warps", "num_stages", "maxnreg") if name in config}


def rows_contiguous(x: Tensor) -> Tensor:
    """The tensor itself where its last dimension is contiguous, else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """A tensor [B, S, H_kv, D] from which tiles of `rows` tokens of one head are copied in bulk."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, rows, 1, x.shape[-1]])


def bulk_copies(*tensors: Tensor) -> bool:
    """Whether the device has bulk copies (TMA) and these tensors' layouts fit them."""
    device = real_device(tensors[0].device)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
        return False
    return all(
        x.numel() > 0
        and x.data_ptr() % 16 == 0
        and all(s > 0 and s * x.element_size() % 16 == 0 for s in x.stride()[:3])
        for x in tensors
    )


def processors(device: torch.device) -> int:
    """Multiprocessors of the device; 2 in the interpreter."""
    return _processors(real_device(device))


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@triton.jit
def wide(x):
    """A scalar as a 64-bit integer; the interpreter's loops count in plain integers, which have no `.to`."""
    return x + tl.full([], 0, tl.int64)
