"""Keys and values of tokens that were read together, and the parts of them that are a row's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor


@dataclass(slots=True, eq=False)
class Block:
    """What one forward leaves, layer by layer; freed when no row has a span of it any more."""

    k: list[Tensor] = field(default_factory=list)
    """[T, H_kv, D_k] contiguous, of each layer."""
    v: list[Tensor] = field(default_factory=list)
    """[T, H_kv, D_v] contiguous, of each layer."""

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(x.numel() * x.element_size() for x in (*self.k, *self.v))


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `begin` to `end` of a block: consecutive ones of a row."""

    block: Block
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin


Chain: TypeAlias = tuple[Span, ...]
"""All that a row has read, in order."""


def own(x: Tensor) -> Tensor:
    """Heads [1, H, T, D] of a forward as [T, H, D], contiguous."""
    return x[0].transpose(0, 1).contiguous()
