"""The NSA side: compression of keys and values, the three branches, gates; and the caches of decode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels import compression
from nsa_kernels.bench.settings import Settings
from nsa_kernels.dispatch import nsa_attention, nsa_decode


@dataclass(frozen=True, slots=True)
class Phi:
    """Weights of the compression of keys, or of values."""

    weights: tuple[Tensor, ...]
    """Nothing | pe, weight | pe, weight_in, bias_in, weight_out, bias_out."""
    settings: Settings

    @classmethod
    def random(cls, width: int, settings: Settings, device: torch.device) -> Phi:
        """Weights that keep the size of what they compress."""
        block, hidden = settings.geometry.block, settings.phi_hidden

        def weight(out: int, into: int) -> Tensor:
            values: Tensor = _randn(out, into, settings=settings, device=device) * into**-0.5
            return values

        pe = _randn(block, width, settings=settings, device=device)
        if settings.phi == "mean":
            return cls((), settings)
        if settings.phi == "linear":
            return cls((pe, weight(width, block * width)), settings)
        biases = (_randn(n, settings=settings, device=device) for n in (hidden, width))
        first, second = weight(hidden, block * width), weight(width, hidden)
        bias_in, bias_out = biases
        return cls((pe, first, bias_in, second, bias_out), settings)

    def trainable(self) -> Phi:
        """The same weights as leaves that ask for gradients."""
        return Phi(tuple(w.detach().requires_grad_() for w in self.weights), self.settings)

    def __call__(self, x: Tensor) -> Tensor:
        """Compresses [B, S, H_kv, D] to [B, C, H_kv, D]."""
        g = self.settings.geometry
        if self.settings.phi == "mean":
            return compression.compress_mean(x, g, backend=self.settings.backend)
        if self.settings.phi == "linear":
            pe, weight = self.weights
            return compression.compress_linear(x, weight, g, pe=pe, backend=self.settings.backend)
        pe, first, bias_in, second, bias_out = self.weights
        return compression.compress_mlp(
            x, first, second, g, bias_in=bias_in, bias_out=bias_out, pe=pe, backend=self.settings.backend
        )


class Attention:
    """The whole attention of a batch of sequences: what a model's layer computes between its projections."""

    def __init__(self, length: int, settings: Settings, device: torch.device) -> None:
        """Fresh random inputs; the settings say how many sequences."""
        s = self.settings = settings
        rows = s.batch(length)
        keys = (rows, length, s.kv_heads)
        self.q = _randn(rows, length, s.heads, s.head_dim, settings=s, device=device)
        self.k = _randn(*keys, s.head_dim, settings=s, device=device)
        self.v = _randn(*keys, s.value_dim, settings=s, device=device)
        self.k_win, self.v_win = self.k, self.v
        if not s.shared_kv:
            self.k_win = _randn(*keys, s.head_dim, settings=s, device=device)
            self.v_win = _randn(*keys, s.value_dim, settings=s, device=device)
        self.gates = _randn(rows, length, s.heads, 3, settings=s, device=device).sigmoid()
        self.dout = _randn(rows, length, s.heads, s.value_dim, settings=s, device=device)
        self.phi_k = Phi.random(s.head_dim, s, device)
        self.phi_v = Phi.random(s.value_dim, s, device)

    def leaves(self) -> list[Tensor]:
        """All that a gradient is asked for."""
        tensors = [self.q, self.k, self.v, self.gates, *self.phi_k.weights, *self.phi_v.weights]
        return tensors if self.settings.shared_kv else [*tensors, self.k_win, self.v_win]

    def forward(self) -> Tensor:
        """[B, N, H, D_v]."""
        return nsa_attention(
            self.q,
            self.phi_k(self.k),
            self.phi_v(self.v),
            self.k,
            self.v,
            self.k_win,
            self.v_win,
            self.gates,
            geometry=self.settings.geometry,
            backend=self.settings.backend,
        ).out


class DecodeCaches:
    """One set of caches and one query a row; the compressed keys stand ready, as a model keeps them."""

    def __init__(self, length: int, batch: int, settings: Settings, device: torch.device) -> None:
        """Fresh random inputs, all rows full."""
        s = self.settings = settings
        keys = (batch, length, s.kv_heads)
        self.q = _randn(batch, s.heads, s.head_dim, settings=s, device=device)
        self.k = _randn(*keys, s.head_dim, settings=s, device=device)
        self.v = _randn(*keys, s.value_dim, settings=s, device=device)
        self.k_cmp = compression.compress_mean(self.k, s.geometry)
        self.v_cmp = compression.compress_mean(self.v, s.geometry)
        self.gates = _randn(batch, s.heads, 3, settings=s, device=device).sigmoid()
        self.lengths = torch.full((batch,), length, dtype=torch.int32, device=device)

    def decode(self) -> Tensor:
        """[B, H, D_v]."""
        return nsa_decode(
            self.q,
            self.k_cmp,
            self.v_cmp,
            self.k,
            self.v,
            self.k,
            self.v,
            self.gates,
            geometry=self.settings.geometry,
            lengths=self.lengths,
            backend=self.settings.backend,
        ).out


def _randn(*shape: int, settings: Settings, device: torch.device) -> Tensor:
    return torch.randn(*shape, device=device, dtype=settings.torch_dtype)
