"""Gates of SeerAttention: small linear layers that score blocks of keys, trained beside a frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsa_models.methods._base import Phase
from nsa_models.methods._block import QueryBlock, Rotate
from nsa_models.methods._rotary import Rotation
from nsa_models.methods._weights import Weighted, WeightsError

Pooling = Literal["maxminavg", "maxmin", "maxavg", "minavg", "max", "min", "avg"]

_EPS = 1e-6
"""Of the gate's RMSNorms, fixed in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class Gated(Weighted):
    """A method whose gate sees queries and keys as they are before RoPE.

    Attributes:
        block: Tokens of a block.
        pooling: What is taken of a block's keys, in this order.
        rope: RoPE in the gate.
    """

    simulated: ClassVar[bool] = True
    needs_rotary: ClassVar[bool] = True
    takes_rotation_off: ClassVar[bool] = True

    block: int = 64
    pooling: Pooling = "maxminavg"
    rope: bool = True

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: An empty block, or weights that aren't there.
        """
        super().__post_init__()
        if self.block < 1:
            self.refuse("block", "must be at least 1 token")

    def check_layers(self, layers: int, dense: Sequence[int]) -> None:
        """Refuse a model with layers for which there is no gate: it is another model's.

        Raises:
            WeightsError: Which layers they are.
        """
        without = sorted({*range(layers)} - {*dense, *self._gates})
        if without:
            numbers = ", ".join(map(str, without))
            raise WeightsError(
                f"{self.name}: {self.weights} holds no gate for layer{'s' * (len(without) > 1)} {numbers} of "
                f"{layers}; give this model's gate, or name in dense_layers what has none"
            )

    def tensor(self, layer: int, name: str) -> Tensor:
        """A tensor of the layer's gate by the last two parts of its name.

        Raises:
            WeightsError: The weights hold none of that name for the layer.
        """
        found = self.maybe_tensor(layer, name)
        if found is None:
            raise WeightsError(f"{self.name}: {self.weights} holds no {name} for layer {layer}")
        return found

    def maybe_tensor(self, layer: int, name: str) -> Tensor | None:
        """As `tensor`, None where there is no such tensor.

        Raises:
            WeightsError: The weights hold nothing for the layer.
        """
        here = self._gates.get(layer)
        if here is None:
            raise WeightsError(f"{self.name}: {self.weights} holds no {name} for layer {layer}")
        return here.get(name)

    def expect(self, layer: int, weight: Tensor, shape: list[int], name: str, pooling: str) -> None:
        """Refuse a weight whose shape isn't `shape` and a last axis, the gate's width.

        Raises:
            WeightsError: With both shapes.
        """
        if list(weight.shape[:-1]) != shape:
            raise WeightsError(
                f"{self.name}: {name} of layer {layer} is {list(weight.shape)}; this model with "
                f"pooling {pooling} takes {[*shape, 'width']}"
            )

    def turned(self, x: Tensor, positions: Tensor, rotate: Rotate, layer: int) -> Tensor:
        """x [B, h, n, width] at positions [B, n], by the model's own frequencies; as it is without RoPE.

        The gate's first dimensions turn, in halves.

        Raises:
            WeightsError: The layer has no rotary embedding, or one wider than the gate.
        """
        if not self.rope:
            return x
        if not isinstance(rotate, Rotation) or 2 * rotate.inv_freq.numel() > x.shape[-1]:
            raise WeightsError(
                f"{self.name}: a gate of width {x.shape[-1]} is rotated as the model, and layer {layer} has "
                "no rotary embedding of at most that width; set rope=false if the gate has none"
            )
        return Rotation(inv_freq=rotate.inv_freq, interleaved=False, at_end=False)(x, positions)

    @cached_property
    def _gates(self) -> dict[int, dict[str, Tensor]]:
        """Of each layer, by the last two parts of their names."""
        return {
            layer: {".".join(name.split(".")[-2:]): tensor for name, tensor in tensors.items()}
            for layer, tensors in self.by_layer().items()
        }


@dataclass(frozen=True, kw_only=True)
class DecodeGate(Gated):
    """SeerAttention-R's gate: per KV head, blocks of keys for one decoded query (arXiv 2506.08889).

    Per KV head, queries and keys as they are before RoPE go through linear layers: a query's heads at once
    (`Qproj`), averaged (`Qavgproj`) or averaged alone (`Qavg`), as the shapes of the weights tell, and the
    pooled keys of each whole block. Both get an RMSNorm where the weights have one, then RoPE at the query's
    position and the block's first. Softmax over blocks of the products by sqrt(width); the last block, while
    it isn't whole, stands there with 0.
    """

    phase: ClassVar[Phase] = "decode"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "KV head"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    marks: ClassVar[tuple[str, ...]] = (".attngate_",)

    def scores(self, block: QueryBlock) -> Tensor:
        """Softmax [B, H_kv, 1, blocks] of one query a row; 0 for blocks behind it.

        Raises:
            WeightsError: The gate has none of this layer, or is of another shape.
        """
        assert block.rotate is not None  # declared by needs_rotary
        own = block.positions[:, None, :, None] // self.block
        count = -(-block.k.shape[2] // self.block)
        index = torch.arange(count, device=block.k.device)
        places = torch.arange(block.k.shape[2], device=block.k.device).expand(len(block.k), -1)
        q = self._query(block, block.rotate(block.q, -block.positions))
        k = self._keys(block, block.rotate(block.k, -places))
        firsts = (index[: k.shape[2]] * self.block).expand(len(k), -1)
        q = self.turned(q, block.positions, block.rotate, block.layer)
        k = self.turned(k, firsts, block.rotate, block.layer)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        logits = pad(logits, (0, count - logits.shape[-1]))
        whole = (index + 1) * self.block <= block.positions[:, None, :, None] + 1
        logits = logits.masked_fill(~whole, 0.0).masked_fill(index > own, float("-inf"))
        return logits.softmax(-1)

    def index_reads(self, tokens: int) -> int:
        """A key of every whole block."""
        return tokens // self.block

    def _query(self, block: QueryBlock, q: Tensor) -> Tensor:
        """[B, H_kv, 1, width] of q [B, H, 1, d] before RoPE."""
        name, groups = "attngate_linear_q.weight", block.k.shape[1]
        heads = q.unflatten(1, (groups, -1))  # [B, H_kv, g, 1, d]
        weight = self.maybe_tensor(block.layer, name)
        if weight is None:
            made = heads.mean(2)
        elif weight.dim() == 4:
            shape = [groups, heads.shape[2], q.shape[-1]]
            self.expect(block.layer, weight, shape, name, self.pooling)
            made = torch.einsum("bkgni,kgio->bkno", heads, like(weight, q))
        else:
            self.expect(block.layer, weight, [groups, q.shape[-1]], name, self.pooling)
            made = torch.einsum("bkni,kio->bkno", heads.mean(2), like(weight, q))
        return self._normed(block, made, "attngate_qnorm.weight")

    def _keys(self, block: QueryBlock, k: Tensor) -> Tensor:
        """[B, H_kv, whole blocks, width] of k [B, H_kv, S, d] before RoPE."""
        name, whole = "attngate_linear_k.weight", k.shape[2] // self.block
        of_blocks = pooled(k[:, :, : whole * self.block], self.block, self.pooling)
        weight = self.tensor(block.layer, name)
        self.expect(block.layer, weight, [k.shape[1], of_blocks.shape[-1]], name, self.pooling)
        made = torch.einsum("bkmi,kio->bkmo", of_blocks, like(weight, k))
        return self._normed(block, made, "attngate_knorm.weight")

    def _normed(self, block: QueryBlock, x: Tensor, name: str) -> Tensor:
        weight = self.maybe_tensor(block.layer, name)
        if weight is None:
            return x
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS) * like(weight, x)


def like(weight: Tensor, x: Tensor) -> Tensor:
    """A weight where x is and in its dtype; a GPU doesn't wait for it."""
    return weight.to(x.device, non_blocking=True).to(x.dtype)


def pooled(x: Tensor, size: int, pooling: Pooling) -> Tensor:
    """Largest, smallest and mean of blocks of `size` tokens, the last one of those it has.

    Args:
        x: [..., n, d].
        size: Tokens of a block.
        pooling: Which of them, one behind the other.

    Returns:
        [..., blocks, d * pools].
    """
    count = x.shape[-2]
    blocks = -(-count // size)
    tokens = torch.full((blocks, 1), size, device=x.device)
    tokens[-1:] = count - (blocks - 1) * size

    def cut(fill: float) -> Tensor:
        filled = pad(x, (0, 0, 0, blocks * size - count), value=fill)
        parts: Tensor = filled.unflatten(-2, (blocks, size))
        return parts

    parts = []
    for name in (pooling[at : at + 3] for at in range(0, len(pooling), 3)):
        if name == "avg":
            parts.append(cut(0.0).sum(-2) / tokens)
        else:
            parts.append(cut(float("-inf")).amax(-2) if name == "max" else cut(float("inf")).amin(-2))
    return torch.cat(parts, dim=-1)
