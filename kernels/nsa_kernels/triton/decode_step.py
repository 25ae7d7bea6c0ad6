"""The whole step of one new token a row, in the three launches of decode: append, compress, attend.

1. decode_fresh.py: the token's keys and values go into the caches; where it completes a block, extra programs
   compute phi in shares; beside them the splits of the compressed and the window branch;
2. decode_fresh.py: the shares become the block's compressed key and value, which go into their caches, into
   the denominators and into one partial; then as in decode_attend.py;
3. decode_merge.py.

Everything follows from shapes and from what stands on the device, so that one CUDA graph serves all steps.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.triton.configs import config as shipped_config
from nsa_kernels.triton.decode import merge
from nsa_kernels.triton.decode_fresh import step_attend_kernel, step_score_kernel
from nsa_kernels.triton.decode_plan import bulk_tiles, first_grid, prepare, rows_contiguous, scratch
from nsa_kernels.triton.phi import Phi
from nsa_kernels.triton.tiles import LOG2E, MIN_DOT, processors
from nsa_kernels.types import NSAOutput

SEARCH: tuple[Mapping[str, int], ...] = tuple(
    {"units": units, "elements": elements, "stages": stages, "programs": programs}
    for units, elements, stages, programs in (
        (16, 256, 4, 2),
        (16, 256, 3, 2),
        (16, 512, 2, 2),
        (16, 128, 4, 2),
        (16, 256, 4, 4),
        (16, 256, 4, 1),
        (32, 256, 3, 2),
        (64, 128, 3, 2),
    )
)
"""Candidates for the stage "decode_step": phi's part in the first launch.

units: rows of the first weight that a program takes at a time. elements: of each row, at a time. stages: of
the pipeline that loads them. programs: of phi to a multiprocessor, at most about (but each head of a row has
one).
"""
_MOST_SHARES = 16  # each program of the second launch adds them up


class NewToken(NamedTuple):
    """What the new token of each row adds to the caches; for branches that share a buffer, the same."""

    k_raw: Tensor
    """What phi of the keys reads, [B, H_kv, D_k]."""
    v_raw: Tensor
    """[B, H_kv, D_v]."""
    k_slc: Tensor
    """[B, H_kv, D_k], as the query meets it."""
    v_slc: Tensor
    """[B, H_kv, D_v]."""
    k_win: Tensor
    """[B, H_kv, D_k]."""
    v_win: Tensor
    """[B, H_kv, D_v]."""


class StepCaches(NamedTuple):
    """Whole buffers, with room for the new token; the last dimension contiguous. One buffer may serve several
    branches, `k_cmp` and `v_cmp` apart."""

    k_raw: Tensor
    """What phi of the keys reads, [B, S, H_kv, D_k]."""
    v_raw: Tensor
    """[B, S, H_kv, D_v]."""
    k_cmp: Tensor
    """Compressed keys [B, C, H_kv, D_k], C >= num_blocks(S)."""
    v_cmp: Tensor
    """[B, C, H_kv, D_v]."""
    k_slc: Tensor
    """[B, S, H_kv, D_k]."""
    v_slc: Tensor
    """[B, S, H_kv, D_v]."""
    k_win: Tensor
    """[B, S, H_kv, D_k]."""
    v_win: Tensor
    """[B, S, H_kv, D_v]."""


@torch.no_grad()
def decode_step(
    q: Tensor,
    new: NewToken,
    caches: StepCaches,
    gates: Tensor,
    *,
    phi_k: Phi,
    phi_v: Phi,
    rotary: tuple[Tensor, Tensor] | None,
    geometry: BlockGeometry,
    lengths: Tensor,
    scale: float,
    return_blocks: bool,
    config: Mapping[str, int] | None = None,
    phi_config: Mapping[str, int] | None = None,
) -> NSAOutput:
    """Appends one token to each row, compresses the blocks that these complete, and attends to all.

    The caches are changed in place: the token's row in six of them, and one row of the compressed where
    (length - l) % d == 0. A row of length 0 has no token: nothing is written for it, and its output is 0.
    What stands past a row's length, or past its complete blocks, may be anything.

    Args:
        q: [B, H, D_k], rotated.
        new: The token's keys and values.
        caches: The buffers.
        gates: [B, H, 3], already through the sigmoid.
        phi_k: Compression of the keys.
        phi_v: Compression of the values.
        rotary: Cosines and sines [positions, D_k] that rotate a compressed key (NeoX halves) by the position
            of its block's first token, or None to leave it as phi gives it.
        geometry: Block sizes.
        lengths: Tokens of each row, the new one among them, integers [B], at most S.
        scale: Factor on q.k.
        return_blocks: Also return the selected blocks.
        config: Parameters in place of the shipped ones of decode.
        phi_config: The same for phi (see `SEARCH`).

    Returns:
        out [B, H, D_v] and blocks int32 [B, H_kv, n] or None.

    Raises:
        ValueError: A cache's last dimension is not contiguous, or weights or tables do not fit.
    """
    new, caches = NewToken(*map(rows_contiguous, new)), StepCaches(*caches)
    for name, cache in caches._asdict().items():
        if cache.stride(-1) != 1 and cache.shape[-1] != 1:
            raise ValueError(
                f"{name} is written in place: its last dimension must be contiguous, got strides "
                f"{cache.stride()}"
            )
    key_dim, value_dim, kv_heads = q.shape[-1], caches.v_slc.shape[-1], caches.k_slc.shape[2]
    phi_k.check(geometry, key_dim)
    phi_v.check(geometry, value_dim)
    cos, sin = _tables(rotary, key_dim)
    q, gates = rows_contiguous(q), rows_contiguous(gates)
    work = prepare(q, caches.k_slc, caches.v_slc, geometry, return_blocks, True, config)
    if work.pairs == 0:
        return NSAOutput(work.out, work.blocks)
    chosen = phi_config or shipped_config("decode_step", max(key_dim, value_dim), q.device)
    heads_padded = max(MIN_DOT, triton.next_power_of_2(kv_heads))
    # Most steps complete no block: their programs of phi come and go, and should be few.
    most = max(kv_heads, chosen["programs"] * processors(q.device) // (2 * q.shape[0]))
    k_phi, k_weights = _constants(phi_k, key_dim, kv_heads, most, chosen)
    v_phi, v_weights = _constants(phi_v, value_dim, kv_heads, most, chosen)
    k_scratch, v_scratch = scratch(
        q.device,
        work.pairs * k_phi["SHARES"] * key_dim,
        work.pairs * v_phi["SHARES"] * value_dim,
        dtype=torch.float32,
    )
    p = work.plan
    parts = k_phi["PARTS"] + v_phi["PARTS"]
    step_score_kernel[first_grid(p, parts + p.window_splits + p.splits, work.pairs)](
        q,
        *caches,
        *bulk_tiles(p, caches.k_cmp, caches.v_cmp),
        *new,
        lengths,
        *k_weights,
        k_scratch,
        *v_weights,
        v_scratch,
        work.partial,
        work.stats,
        work.reference,
        work.pooled,
        *q.stride()[:2],
        *(stride for cache in caches for stride in cache.stride()[:3]),
        *(stride for vector in new for stride in vector.stride()[:2]),
        scale * LOG2E,
        kv_heads,
        p.shares,
        p.tiles,
        p.tile_run,
        p.window_run,
        min(caches.k_cmp.shape[1], caches.v_cmp.shape[1]),
        **{f"K_{name}": value for name, value in k_phi.items()},
        **{f"V_{name}": value for name, value in v_phi.items()},
        HEADS=heads_padded,
        BN=chosen["units"],
        BK=max(MIN_DOT, chosen["elements"] * MIN_DOT // heads_padded),
        STAGES=chosen["stages"],
        **work.score,
    )
    step_attend_kernel[(p.runs, work.pairs)](
        q,
        caches.k_cmp,
        caches.v_cmp,
        caches.k_slc,
        caches.v_slc,
        k_scratch,
        v_scratch,
        cos,
        sin,
        lengths,
        work.partial,
        work.stats,
        work.reference,
        work.pooled,
        work.ranked,
        work.denominators,
        work.blocks,
        *q.stride()[:2],
        *caches.k_cmp.stride()[:3],
        *caches.v_cmp.stride()[:3],
        *caches.k_slc.stride()[:3],
        *caches.v_slc.stride()[:3],
        0 if cos is None else cos.stride(0),
        0 if sin is None else sin.stride(0),
        scale * LOG2E,
        kv_heads,
        p.splits,
        p.tiles,
        p.tile_run,
        p.runs,
        K_SHARES=k_phi["SHARES"],
        V_SHARES=v_phi["SHARES"],
        **work.attend,
    )
    return merge(work, gates, lengths, kv_heads)


def _constants(
    phi: Phi, width: int, kv_heads: int, most: int, config: Mapping[str, int]
) -> tuple[dict[str, Any], tuple[Tensor | int | None, ...]]:
    """How phi is cut into at most `most` slices of a row, and its weights as the kernel takes them."""
    next_power = triton.next_power_of_2
    units = 0 if phi.weight is None else phi.weight.shape[0]
    steps = triton.cdiv(units, config["units"])
    run = max(1, triton.cdiv(steps, min(most, _MOST_SHARES) if phi.kind == "mlp" else most))
    slices = triton.cdiv(steps, run)
    constants = {
        "KIND": phi.kind,
        "UNITS": units,
        "RUN": run,
        "SLICES": slices,
        "SHARES": slices if phi.kind == "mlp" else 1,
        "PARTS": max(1, triton.cdiv(slices, kv_heads)),
        "ROWS": max(1, min(64, 8192 // next_power(width))),
        "DP": max(MIN_DOT, next_power(width)),
    }
    weight, weight_out = (None if w is None else rows_contiguous(w) for w in (phi.weight, phi.weight_out))
    bias, bias_out, pe = (None if w is None else w.contiguous() for w in (phi.bias, phi.bias_out, phi.pe))
    weights = (
        weight,
        0 if weight is None else weight.stride(0),
        bias,
        weight_out,
        0 if weight_out is None else weight_out.stride(0),
        bias_out,
        pe,
    )
    return constants, weights


def _tables(rotary: tuple[Tensor, Tensor] | None, width: int) -> tuple[Tensor | None, Tensor | None]:
    if rotary is None:
        return None, None
    for name, table in zip(("cos", "sin"), rotary, strict=True):
        if table.dim() != 2 or table.shape[1] != width or width % 2:
            raise ValueError(
                f"{name} must be [positions, D_k] with D_k = {width}, which must be even, got "
                f"{list(table.shape)}"
            )
    return rows_contiguous(rotary[0]), rows_contiguous(rotary[1])
