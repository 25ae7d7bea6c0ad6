"""The two calls of this package, and the choice of the backend behind them."""

import importlib
import importlib.util

import torch
from torch import Tensor

from nsa_kernels.ahead import real_device
from nsa_kernels.checks import check_attention
from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.types import Backend, BackendUnavailableError, Caches, NSAOutput

# name -> the module that has `attention` and `decode`. A backend may also have `unavailable() -> str | None`,
# the reason why it cannot run on this machine.
_MODULES = {
    "reference": "nsa_kernels.reference",
    "torch": "nsa_kernels.torch_",
    "triton": "nsa_kernels.triton",
}
BACKENDS = tuple(_MODULES)
"""Names of all backends, those that cannot run here too."""
_TRITON_DTYPES = (torch.bfloat16, torch.float16)
_TRITON_GROUP = 16
_TRITON_WIDTH = 192


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run here, for the `backend` argument ("auto" apart)."""
    return tuple(name for name in _MODULES if _missing(name) is None)


def get_backend(name: str, geometry: BlockGeometry | None = None) -> Backend:
    """The backend of that name.

    Args:
        name: Out of `BACKENDS`.
        geometry: Blocks that it has to serve; None = any.

    Raises:
        ValueError: There is no such backend, or it can't force the blocks that this geometry forces.
        BackendUnavailableError: There is, but it cannot run here.
    """
    if name not in _MODULES:
        raise ValueError(f"unknown backend {name!r}: choose auto, {', '.join(_MODULES)}")
    reason = _missing(name)
    if reason is not None:
        raise BackendUnavailableError(
            f"backend {name!r} cannot run here: {reason}; "
            f"available are auto, {', '.join(available_backends())}"
        )
    if name == "triton" and geometry is not None and not geometry.forces_as_paper:
        raise ValueError(
            "backend 'triton' always selects block 0, the token's own and the one before it, as the paper "
            f"does; this geometry forces the first {geometry.first_blocks} and the last "
            f"{geometry.last_blocks}: use auto, torch or reference"
        )
    module = importlib.import_module(_MODULES[name])
    return Backend(attention=module.attention, decode=module.decode)


def choose_backend(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    *,
    group: int = 1,
    width: int = 128,
    geometry: BlockGeometry | None = None,
) -> str:
    """What "auto" means for such tensors: triton on CUDA where its tiles are made for them, else torch.

    Args:
        device: Where the tensors are; of NVIDIA's GPUs, those from compute capability 8.0 on.
        dtype: What is computed in: bfloat16 or float16. In float32 the kernels are right but not fast: their
            tiles are those of tensor cores, which have no exact float32.
        group: Query heads to a KV head, up to 16.
        width: The larger head dimension, up to 192.
        geometry: The blocks; the kernels force those of the paper. None = as in the paper.
    """
    made = dtype in _TRITON_DTYPES and group <= _TRITON_GROUP and width <= _TRITON_WIDTH
    made = made and (geometry is None or geometry.forces_as_paper)
    if not made or device.type != "cuda" or _missing("triton") is not None:
        return "torch"
    return "triton" if _has_tensor_cores_for_bfloat16(device) else "torch"


def nsa_attention(
    q: Tensor,
    k_cmp: Tensor,
    v_cmp: Tensor,
    k_slc: Tensor,
    v_slc: Tensor,
    k_win: Tensor,
    v_win: Tensor,
    gates: Tensor,
    *,
    geometry: BlockGeometry,
    start: int | Tensor = 0,
    lengths: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
    return_blocks: bool = False,
) -> NSAOutput:
    """Native Sparse Attention of a run of queries against a cache: prefill, whole or in pieces.

    Query i of row b stands at position start[b] + i; the caches hold the tokens from position 0, the queries'
    own among them. The same tensor may serve several branches. Gradients reach q, all six caches and the
    gates. Under autocast, inputs are cast as for scaled_dot_product_attention.

    Args:
        q: Queries [B, N, H, D_k].
        k_cmp: Compressed keys [B, C, H_kv, D_k], as the query meets them (rotated, if there are rotations);
            C >= num_blocks(S), anything beyond the complete blocks is ignored.
        v_cmp: Compressed values [B, C, H_kv, D_v].
        k_slc: Keys of the selected branch [B, S, H_kv, D_k].
        v_slc: Values of the selected branch [B, S, H_kv, D_v].
        k_win: Keys of the window branch [B, S, H_kv, D_k].
        v_win: Values of the window branch [B, S, H_kv, D_v].
        gates: Gate of each branch [B, N, H, 3], already through the sigmoid: compressed, selected, window.
            Never negative: the triton backend's gradients take their logarithm.
        geometry: Block sizes.
        start: Position of the first query: one for all rows, or integers [B].
        lengths: Valid tokens of each row, integers [B]; None = S. Positions from there on are padding: their
            output is 0, their blocks are -1, and whatever they hold (NaN too) influences nothing.
        scale: Factor on q.k; None = D_k ** -0.5.
        backend: "auto", or a name out of `available_backends()`.
        return_blocks: Also return the selected blocks.

    Returns:
        out [B, N, H, D_v] in the dtype of q, and blocks int32 [B, N, H_kv, n] or None (see `NSAOutput`).

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit, or an unknown backend.
        BackendUnavailableError: The backend cannot run here.
    """
    caches = Caches(k_cmp, v_cmp, k_slc, v_slc, k_win, v_win)
    check_attention(q, caches, gates, geometry=geometry, start=start, lengths=lengths)
    dtype = _compute_dtype(q)
    chosen = _resolve(backend, q, caches, dtype, geometry)
    # The backends mix float32 scores with what they are given; Triton launches on the current device.
    with torch.autocast(real_device(q.device).type, enabled=False), torch.cuda.device_of(q):
        return chosen.attention(
            q.to(dtype),
            Caches(*(x.to(dtype) for x in caches)),
            gates.to(dtype),
            geometry=geometry,
            start=start,
            lengths=lengths,
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            return_blocks=return_blocks,
        )


def nsa_decode(
    q: Tensor,
    k_cmp: Tensor,
    v_cmp: Tensor,
    k_slc: Tensor,
    v_slc: Tensor,
    k_win: Tensor,
    v_win: Tensor,
    gates: Tensor,
    *,
    geometry: BlockGeometry,
    lengths: Tensor,
    scale: float | None = None,
    backend: str = "auto",
    return_blocks: bool = False,
) -> NSAOutput:
    """Native Sparse Attention of one new token in each row.

    The token stands at position lengths[b] - 1, and its own keys are in the caches already. It reads the
    compressed keys, n blocks and one window; rows may differ in length.

    Args:
        q: Queries [B, H, D_k].
        k_cmp: Compressed keys [B, C, H_kv, D_k].
        v_cmp: Compressed values [B, C, H_kv, D_v].
        k_slc: Keys of the selected branch [B, S, H_kv, D_k].
        v_slc: Values of the selected branch [B, S, H_kv, D_v].
        k_win: Keys of the window branch [B, S, H_kv, D_k].
        v_win: Values of the window branch [B, S, H_kv, D_v].
        gates: [B, H, 3], already through the sigmoid: compressed, selected, window.
        geometry: Block sizes.
        lengths: Tokens in each row's cache, the new one included, integers [B]; a row of length 0 gives 0.
        scale: Factor on q.k; None = D_k ** -0.5.
        backend: "auto", or a name out of `available_backends()`.
        return_blocks: Also return the selected blocks.

    Returns:
        out [B, H, D_v] in the dtype of q, and blocks int32 [B, H_kv, n] or None.

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit, or an unknown backend.
        BackendUnavailableError: The backend cannot run here.
    """
    caches = Caches(k_cmp, v_cmp, k_slc, v_slc, k_win, v_win)
    if q.dim() != 3 or gates.dim() != 3:
        raise ValueError(
            f"q must be [B, H, D_k] and gates [B, H, 3], got {list(q.shape)} and {list(gates.shape)}"
        )
    check_attention(
        q.unsqueeze(1), caches, gates.unsqueeze(1), geometry=geometry, start=lengths - 1, lengths=lengths
    )
    dtype = _compute_dtype(q)
    chosen = _resolve(backend, q, caches, dtype, geometry)
    with torch.autocast(real_device(q.device).type, enabled=False), torch.cuda.device_of(q):
        return chosen.decode(
            q.to(dtype),
            Caches(*(x.to(dtype) for x in caches)),
            gates.to(dtype),
            geometry=geometry,
            lengths=lengths,
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            return_blocks=return_blocks,
        )


def _compute_dtype(q: Tensor) -> torch.dtype:
    """The dtype to compute in: that of autocast where it is on (float64 stays), else that of the queries."""
    device = real_device(q.device).type
    if torch.is_autocast_enabled(device) and q.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return q.dtype


def _resolve(name: str, q: Tensor, caches: Caches, dtype: torch.dtype, geometry: BlockGeometry) -> Backend:
    """The backend of that name, or what "auto" means for queries [..., H, D_k] and these caches."""
    if name == "auto":
        group = q.shape[-2] // caches.k_slc.shape[2]
        width = max(q.shape[-1], caches.v_slc.shape[3])
        name = choose_backend(real_device(q.device), dtype, group=group, width=width, geometry=geometry)
    return get_backend(name, geometry)


def _has_tensor_cores_for_bfloat16(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _missing(name: str) -> str | None:
    """Why the backend cannot run here, or None."""
    if importlib.util.find_spec(_MODULES[name]) is None:
        return "this version has no such kernels yet"
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return "the triton package is not installed (pip install 'nsa-eval[gpu]')"
    module = importlib.import_module(_MODULES[name])
    return module.unavailable() if hasattr(module, "unavailable") else None
