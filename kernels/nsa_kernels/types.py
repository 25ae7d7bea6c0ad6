"""What a backend is given, what it returns, and what it has to provide."""

from typing import NamedTuple, Protocol

from torch import Tensor

from nsa_kernels.geometry import BlockGeometry


class Caches(NamedTuple):
    """Keys and values of the three branches, as a backend gets them."""

    k_cmp: Tensor
    """[B, C, H_kv, D_k], one for each compression block."""
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


class NSAOutput(NamedTuple):
    """Result of `nsa_attention` (prefill) or `nsa_decode` (one token a row)."""

    out: Tensor
    """[B, N, H, D_v], or [B, H, D_v] from decode; 0 at padding."""
    blocks: Tensor | None
    """Selected blocks, int32 [B, N, H_kv, n] ([B, H_kv, n] from decode): ascending, then -1 for unused
    slots; all -1 at padding. None unless asked for."""


class BackendUnavailableError(RuntimeError):
    """The backend asked for by name cannot run here; the message says why and what can."""


class AttentionFunction(Protocol):
    """A backend's prefill; arguments as in `nsa_attention`, already checked and of one dtype."""

    def __call__(
        self,
        q: Tensor,
        caches: Caches,
        gates: Tensor,
        *,
        geometry: BlockGeometry,
        start: int | Tensor,
        lengths: Tensor | None,
        scale: float,
        return_blocks: bool,
    ) -> NSAOutput:
        """Computes the attention."""
        ...


class DecodeFunction(Protocol):
    """A backend's decode; arguments as in `nsa_decode`, already checked and of one dtype."""

    def __call__(
        self,
        q: Tensor,
        caches: Caches,
        gates: Tensor,
        *,
        geometry: BlockGeometry,
        lengths: Tensor,
        scale: float,
        return_blocks: bool,
    ) -> NSAOutput:
        """Computes the attention of one token for each row."""
        ...


class Backend(NamedTuple):
    """One way to compute the attention."""

    attention: AttentionFunction
    decode: DecodeFunction
