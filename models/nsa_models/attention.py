"""The decoder's two attentions: full, and NSA with three gated branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsa_kernels import compress_linear, compress_mean, compress_mlp, nsa_attention, nsa_decode
from nsa_kernels.heads import norm_rotate
from nsa_models.batch import RaggedBatch, SteadyBatch
from nsa_models.cache import NSACacheLayer
from nsa_models.configuration import BRANCHES, NSADecoderConfig
from nsa_models.feeding import current_feed
from nsa_models.lower_right import lower_right_attention
from nsa_models.rope import RotaryEmbedding, rotate

# torch.compile has nothing to gain inside of the Triton kernels and their autograd function: it compiles what
# stands before and behind them. Only the `torch` backend, asked for by name, is compiled along.
_WHY = "the kernels of NSA are not for torch.compile to trace"
_untraced_attention = torch.compiler.disable(nsa_attention, reason=_WHY)
_untraced_decode = torch.compiler.disable(nsa_decode, reason=_WHY)
_UNTRACED = {
    f: torch.compiler.disable(f, reason=_WHY) for f in (compress_mean, compress_linear, compress_mlp)
}

# Query rows per masked SDPA call when a chunk meets a cache: bounds the mask at rows x S.
_MASKED_ROWS = 512

_OfBranches: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Keys and values of the compressed, the selected and the window branch, each [B, S, H_kv, d]."""


class HeadRMSNorm(nn.Module):
    """RMSNorm over the last axis, computed in float32 by torch."""

    def __init__(self, size: int, eps: float) -> None:
        """Unit weights of length `size`."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., size]."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps).to(x.dtype)


class FullAttention(nn.Module):
    """Causal softmax attention with grouped K/V heads: the dense twin.

    Attributes:
        attend: What stands between the projections, called as `causal_attention`, which it is unless a sparse
            method is attached (`nsa_models.methods`).
    """

    def __init__(self, config: NSADecoderConfig) -> None:
        """Projections of `config`'s shape."""
        super().__init__()
        self.config = config
        heads, groups, d_k, d_v = _shape(config)
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, heads * d_k, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, groups * d_k, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, groups * d_v, bias=bias)
        self.o_proj = nn.Linear(heads * d_v, config.hidden_size, bias=False)
        self.q_norm = HeadRMSNorm(d_k, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = HeadRMSNorm(d_k, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        if config.attention_gate:
            self.g_proj = nn.Linear(config.hidden_size, heads, bias=config.gate_bias)
        self.attend: Callable[[Tensor, Tensor, Tensor, RaggedBatch], Tensor] = causal_attention

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: RaggedBatch, cache: NSACacheLayer | None
    ) -> Tensor:
        """Attend within the chunk and to the cache; x and the result [B, N, hidden]."""
        q = _normed(self.q_norm, self.q_proj(x).unflatten(-1, (-1, self.config.head_dim)), cos, sin)
        k = _normed(self.k_norm, self.k_proj(x).unflatten(-1, (-1, self.config.head_dim)), cos, sin)
        v = self.v_proj(x).unflatten(-1, (-1, self.config.v_head_dim))
        feed = current_feed()
        if feed is not None:
            out = feed.attend(*(x.transpose(1, 2) for x in (q, k, v)), scale=None)
        else:
            if cache is not None:
                k, v = cache.append("k", k, batch), cache.append("v", v, batch)
            out = self.attend(q, k, v, batch)
        if self.config.attention_gate:
            out = out * torch.sigmoid(self.g_proj(x)).unsqueeze(-1)
        projected: Tensor = self.o_proj(out.flatten(-2))
        return projected


def causal_attention(q: Tensor, k: Tensor, v: Tensor, batch: RaggedBatch) -> Tensor:
    """Softmax attention of a chunk's queries over all keys up to their own position.

    Right padding needs no mask: padded keys stand after every real query of their row.

    Args:
        q: [B, N, H, d_k], query i of row b at position starts[b] + i.
        k: [B, S, H_kv, d_k].
        v: [B, S, H_kv, d_v].
        batch: The chunk.

    Returns:
        [B, N, H, d_v].
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    length = q.shape[2]
    if batch.start == 0:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    elif batch.start is not None:
        out = lower_right_attention(q, k, v)
    elif length == 1:
        # One query a row: a group's heads stand in as the queries of their KV head, which no kernel has to
        # copy for each of them then, as those that take a mask would.
        mask = torch.arange(k.shape[2], device=q.device) <= batch.positions()  # [B, S]
        folded = q.squeeze(2).unflatten(1, (k.shape[1], -1))  # [B, H_kv, G, d_k]
        out = F.scaled_dot_product_attention(folded, k, v, attn_mask=mask[:, None, None])
        out = out.flatten(1, 2)[:, :, None]
    else:
        positions = batch.positions()
        columns = torch.arange(k.shape[2], device=q.device)
        pieces = []
        for begin in range(0, length, _MASKED_ROWS):
            rows = slice(begin, begin + _MASKED_ROWS)
            mask = columns <= positions[:, rows, None]  # [B or 1, rows, S]
            pieces.append(
                F.scaled_dot_product_attention(
                    q[:, :, rows], k, v, attn_mask=mask[:, None], enable_gqa=grouped
                )
            )
        out = torch.cat(pieces, dim=2)
    return out.transpose(1, 2)


class BlockCompression(nn.Module):
    """phi: one vector for each block of l tokens, with a learned position of each token inside the block.

    Keys and values have a phi each; KV heads share it (paper, section 3.3.1).
    """

    def __init__(self, config: NSADecoderConfig, dim: int) -> None:
        """phi for heads of width `dim`."""
        super().__init__()
        self.config = config
        self.kind = config.nsa_compression
        self.geometry = config.geometry
        block, hidden = config.nsa_block, config.nsa_compression_hidden
        if self.kind != "mean":
            self.pe = nn.Parameter(torch.zeros(block, dim))
        if self.kind == "linear":
            self.proj = nn.Linear(block * dim, dim, bias=False)
        elif self.kind == "mlp":
            self.up_proj = nn.Linear(block * dim, hidden, bias=True)
            self.down_proj = nn.Linear(hidden, dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Compress tokens x [B, T, H_kv, dim] into [B, (T - l) // d + 1, H_kv, dim]."""
        if self.kind == "mean":
            return self._compress(compress_mean, x)
        if self.kind == "linear":
            return self._compress(compress_linear, x, self.proj.weight, pe=self.pe)
        return self._compress(
            compress_mlp,
            x,
            self.up_proj.weight,
            self.down_proj.weight,
            bias_in=self.up_proj.bias,
            bias_out=self.down_proj.bias,
            pe=self.pe,
        )

    def _compress(self, phi: Callable[..., Tensor], *tensors: Tensor, **options: Tensor) -> Tensor:
        """phi of the kernels, with the backend that the attention has."""
        if self.config.nsa_backend in ("torch", "reference"):
            return phi(*tensors, geometry=self.geometry, backend="torch", **options)
        out: Tensor = _UNTRACED[phi](*tensors, geometry=self.geometry, **options)
        return out


class NSAAttention(nn.Module):
    """Native Sparse Attention (arXiv 2502.11089): compressed, selected and window branches, gated.

    Attributes:
        on_blocks: Receives the blocks that the kernel chose in each forward, int32 [B, N, H_kv, n], rows
            padded on the right (`nsa_models.looking`); None: nobody asks, and kernels don't write them.
        on_keys: Receives what ranks the blocks (`nsa_models.train.ranking`), in each forward without a cache:
            queries [B, N, H, d_k], compressed keys [B, C, H_kv, d_k], selected keys [B, N, H_kv, d_k].
    """

    def __init__(self, config: NSADecoderConfig, rotary: RotaryEmbedding) -> None:
        """Projections of `config`'s shape; `rotary` gives the compressed keys their positions."""
        super().__init__()
        self.config = config
        self._rotary = (rotary,)  # a tuple: the decoder owns the module, this layer only calls it
        heads, groups, d_k, d_v = _shape(config)
        kv_sets = 1 if config.nsa_share_kv else len(BRANCHES)
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, heads * d_k, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_sets * groups * d_k, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_sets * groups * d_v, bias=bias)
        self.o_proj = nn.Linear(heads * d_v, config.hidden_size, bias=False)
        self.g_proj = nn.Linear(config.hidden_size, heads * len(BRANCHES), bias=config.gate_bias)
        self.q_norm = HeadRMSNorm(d_k, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norms = nn.ModuleList(
            HeadRMSNorm(d_k, config.rms_norm_eps) if config.qk_norm else nn.Identity() for _ in range(kv_sets)
        )
        self.k_compress = BlockCompression(config, d_k)
        self.v_compress = BlockCompression(config, d_v)
        self.on_blocks: Callable[[Tensor], None] | None = None
        self.on_keys: Callable[[Tensor, Tensor, Tensor], None] | None = None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: RaggedBatch, cache: NSACacheLayer | None
    ) -> Tensor:
        """Attend within the chunk and to the cache; x and the result [B, N, hidden]."""
        config = self.config
        heads, groups, d_k, d_v = _shape(config)
        q = _normed(self.q_norm, self.q_proj(x).unflatten(-1, (heads, d_k)), cos, sin)
        keys = self.k_proj(x).unflatten(-1, (-1, groups, d_k)).unbind(2)
        # With one shared K/V, all branches read the first set.
        norms = dict(zip(BRANCHES, zip(self.k_norms, keys, strict=True), strict=False))
        values = dict(zip(BRANCHES, self.v_proj(x).unflatten(-1, (-1, groups, d_v)).unbind(2), strict=False))
        gates = self._gates(x)
        rotated = config.nsa_compress_rotated
        to_compress = _normed(*norms["cmp"], *((cos, sin) if rotated else (None, None)))
        slc = (_normed(*norms.get("slc", norms["cmp"]), cos, sin), values.get("slc", values["cmp"]))
        win = (_normed(*norms["win"], cos, sin), values["win"]) if "win" in norms else None
        v_raw = values["cmp"]
        if cache is None:
            k_cmp, v_cmp = self._compress_keys(to_compress, None), self.v_compress(v_raw)
            if self.on_keys is not None:
                self.on_keys(q, k_cmp, slc[0])
        else:
            slc = (cache.append("k_slc", slc[0], batch), cache.append("v_slc", slc[1], batch))
            if win is not None:
                win = (cache.append("k_win", win[0], batch), cache.append("v_win", win[1], batch))
            k_raw = cache.append("k_cmp_raw", to_compress, batch)
            v_raw = slc[1] if win is None else cache.append("v_cmp_raw", v_raw, batch)
            steady = batch if isinstance(batch, SteadyBatch) else None
            k_cmp = cache.grow_compressed(
                "k_cmp", k_raw, batch, config.geometry, lambda x, first: self._compress_keys(x, first, steady)
            )
            v_cmp = cache.grow_compressed(
                "v_cmp", v_raw, batch, config.geometry, lambda tokens, _: self.v_compress(tokens)
            )

        tensors = (k_cmp, v_cmp, *slc, *(win or slc))
        one_step = cache is not None and x.shape[1] == 1 and batch.full
        out = self._attend(q, tensors, gates, batch, one_step=one_step)
        projected: Tensor = self.o_proj(out.flatten(-2))
        return projected

    def _gates(self, x: Tensor) -> Tensor:
        """How much of each branch every head takes, [B, N, H, 3]; nothing of those that are closed."""
        gates = torch.sigmoid(self.g_proj(x).unflatten(-1, (self.config.num_attention_heads, len(BRANCHES))))
        if not self.config.closed_branches:
            return gates
        opened = list(gates.unbind(-1))
        for closed in self.config.closed_branches:
            opened[closed] = torch.zeros_like(opened[closed])
        return torch.stack(opened, dim=-1)

    def _attend(
        self, q: Tensor, tensors: _OfBranches, gates: Tensor, batch: RaggedBatch, *, one_step: bool
    ) -> Tensor:
        """The three branches by the kernels, [B, N, H, d_v]; tells `on_blocks` which blocks were chosen."""
        config = self.config
        if one_step:
            decode = nsa_decode if config.nsa_backend == "torch" else _untraced_decode
            found = decode(
                q[:, 0],
                *tensors,
                gates[:, 0],
                geometry=config.geometry,
                lengths=batch.tensor("ends"),
                backend=config.nsa_backend,
                return_blocks=self.on_blocks is not None,
            )
            out, blocks = found.out[:, None], None if found.blocks is None else found.blocks[:, None]
        else:
            attend = nsa_attention if config.nsa_backend == "torch" else _untraced_attention
            out, blocks = attend(
                q,
                *tensors,
                gates,
                geometry=config.geometry,
                start=batch.start if batch.start is not None else batch.tensor("starts"),
                lengths=None if batch.full and batch.start is not None else batch.tensor("ends"),
                backend=config.nsa_backend,
                return_blocks=self.on_blocks is not None,
            )
        if self.on_blocks is not None and blocks is not None:
            self.on_blocks(blocks)
        return out

    def _compress_keys(
        self, tokens: Tensor, first: Tensor | None, batch: SteadyBatch | None = None
    ) -> Tensor:
        """Compress keys and give each its block's first position ([B or 1, blocks]; None = 0, d, 2d, ...)."""
        keys: Tensor = self.k_compress(tokens)
        if self.config.nsa_compress_rotated:
            return keys
        if first is None:
            first = torch.arange(keys.shape[1], device=keys.device)[None] * self.config.nsa_stride
        # No forward of its own: blocks begin before the last token.
        cos, sin = batch.angles(self._rotary[0].at, first) if batch is not None else self._rotary[0].at(first)
        return rotate(keys, cos, sin)


def _normed(norm: nn.Module, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Heads x [B, N, heads, d_k] through their norm, if they have one, and rotated."""
    if isinstance(norm, HeadRMSNorm):
        return norm_rotate(x, norm.weight.to(x.dtype), norm.eps, cos, sin)
    return norm_rotate(x, None, 0.0, cos, sin)


def _shape(config: NSADecoderConfig) -> tuple[int, int, int, int]:
    assert config.v_head_dim is not None  # filled in by the config
    return config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.v_head_dim
