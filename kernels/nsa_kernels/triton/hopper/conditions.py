"""When the kernel for Hopper takes a call. Nothing here needs Gluon, which some versions of Triton lack."""

import functools
import importlib
import logging
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from nsa_kernels.triton.configs import table_name
from nsa_kernels.triton.tiles import Grid, bulk_copies, processors

WIDTH = 128
"""The head dimension of keys and values."""
ROWS = 64
"""Rows of one consumer: those of a warpgroup's matrix instruction."""
CONSUMERS = 2
"""Of a program."""
PIECES = 16
"""Pieces of work to a multiprocessor that a call needs: a launch costs the host 0.1 ms more than others."""
VERSIONS = ((3, 6), (3, 7))
"""Versions of Triton that the kernel was written for: Gluon is experimental, and changes with each."""

_log = logging.getLogger(__name__)


def serves(q: Tensor, keys_values: Sequence[Tensor], grid: Grid) -> bool:
    """Whether the kernel takes this call, and pays."""
    hopper = table_name(q.device) == "h200"  # its warpgroup instructions exist in capability 9.0 alone
    if not hopper or triton.knobs.runtime.interpret:
        return False
    rows = grid.batch * grid.queries * grid.heads
    pays = rows >= PIECES * processors(q.device) * CONSUMERS * ROWS
    return pays and fits(q, keys_values, grid) and missing() is None


def fits(q: Tensor, keys_values: Sequence[Tensor], grid: Grid) -> bool:
    """Whether the kernel takes tensors of these types, sizes and layouts."""
    return (
        q.dtype in (torch.bfloat16, torch.float16)
        and all(x.dtype == q.dtype for x in keys_values)
        and all(x.shape[-1] == WIDTH and x.stride(-1) == 1 for x in (q, *keys_values))
        and 1 < grid.group == grid.padded_group <= ROWS
        and bulk_copies(q, *keys_values)
        and all(pitch(x) > 0 for x in keys_values)
    )


def pitch(x: Tensor) -> int:
    """Rows from one batch row to the next in x [B, S, H_kv, D] seen as a matrix [rows, H_kv * D].

    Returns:
        0 where it is no such matrix without a copy.
    """
    batch, count, heads, width = x.shape
    if heads > 1 and x.stride(2) != width:
        return 0
    if batch == 1:
        return count
    return 0 if x.stride(0) % x.stride(1) else x.stride(0) // x.stride(1)


@functools.cache
def missing() -> str | None:
    """What this Triton lacks for the kernel, or None. It is logged once; plain kernels do the work then."""
    reason = _missing()
    if reason is not None:
        _log.warning("attention runs without its kernel for Hopper, on slower ones: %s", reason)
    return reason


def _missing() -> str | None:
    version = triton.__version__
    if tuple(int(part) for part in version.split(".")[:2]) not in VERSIONS:
        known = " and ".join(f"{major}.{minor}" for major, minor in VERSIONS)
        return f"it was written for Triton {known}, and this is {version}"
    try:
        language = importlib.import_module("triton.experimental.gluon.language")
        importlib.import_module("triton.experimental.gluon.language.nvidia.hopper")
    except ImportError as error:
        return f"Triton {version} has no Gluon here ({error})"
    # It is private, but there is no other way to see a tile in shared memory as another.
    if not hasattr(language.shared_memory_descriptor, "_reinterpret"):
        return f"Gluon of Triton {version} has no shared_memory_descriptor._reinterpret"
    return None
