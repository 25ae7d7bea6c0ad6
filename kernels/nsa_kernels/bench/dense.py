"""The dense side: torch's scaled_dot_product_attention with each of its fused backends.

Grouped KV heads go in as they are (`enable_gqa`). The memory-efficient backend has no form for them, and
expanding the keys for it would be a copy of H / H_kv times their size: it is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
CPU_BACKENDS = {"math": SDPBackend.MATH}

Attend = Callable[[], Tensor]


def sdpa_backends(device: torch.device) -> dict[str, SDPBackend]:
    """Name -> backend, those that may run on the device."""
    return BACKENDS if device.type == "cuda" else CPU_BACKENDS


def heads_first(x: Tensor) -> Tensor:
    """[B, N, H, D] -> [B, H, N, D], contiguous: the layout that SDPA is fed in."""
    return x.transpose(1, 2).contiguous()


def only(backend: SDPBackend | None) -> AbstractContextManager[None]:
    """Makes SDPA use this backend or fail; None changes nothing."""
    if backend is None:
        return nullcontext()
    context: AbstractContextManager[None] = sdpa_kernel(backend)
    return context


def prefill(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Attend:
    """Causal attention of q [B, H, N, D_k] to k, v [B, H_kv, N, D]."""
    grouped = q.shape[1] != k.shape[1]

    def attend() -> Tensor:
        with only(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    return attend


def decode(q: Tensor, k: Tensor, v: Tensor) -> Attend:
    """Attention of one query a row, q [B, H, 1, D_k], to caches [B, H_kv, S, D].

    The caller chooses the backend (`only`) around all calls: choosing costs as much host time as a launch.
    """
    grouped = q.shape[1] != k.shape[1]
    return lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)


def decode_packed(q: Tensor, k: Tensor, v: Tensor) -> Attend:
    """The same with the heads of a group as queries of one head, which needs no `enable_gqa`."""
    packed = q.view(k.shape[0], k.shape[1], -1, q.shape[-1])
    return lambda: F.scaled_dot_product_attention(packed, k, v)
