"""Whole prompts, for methods whose choices need all queries of one before the first of them reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_models.methods._block import Rotate, grouped
from nsa_models.methods._placement import Placement


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One row's prompt in one layer, without padding: query and key t stand at position t.

    Tensors are float32, or float64 where the model is.
    """

    q: Tensor
    """[H, n, d], after RoPE."""
    k: Tensor
    """[H_kv, n, d], after RoPE."""
    scaling: float
    """Factor of q.k in the logits."""
    layer: int
    """Index of the layer."""
    rotate: Rotate | None = None
    """As in `QueryBlock`; its queries are [1, h, n, d] here."""

    @property
    def length(self) -> int:
        """Tokens, at least 1."""
        return self.q.shape[1]

    def dot(self, q: Tensor, keys: Tensor) -> Tensor:
        """Unscaled products [H, m, X] of q [H, m, d] with keys [H_kv, X, d] of each head's group."""
        return grouped(q[None], keys.transpose(-1, -2)[None])[0]


def prompt_rows(
    q: Tensor,
    k: Tensor,
    place: Placement,
    *,
    scaling: float,
    layer: int,
    rotate: Rotate | None = None,
) -> Iterator[PromptRow | None]:
    """The prompts of a forward, row by row, wherever their padding stands; each is made as it is asked for.

    Args:
        q: [B, H, N, d].
        k: [B, H_kv, S, d], column s at position s.
        place: Where the queries stand; see `whole`.
        scaling: Factor of q.k.
        layer: Index of the layer.
        rotate: See `PromptRow`.

    Yields:
        A prompt for each row, None for one that has no token here.
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    for row, new in enumerate(place.tokens()):
        if not new.count:
            yield None
            continue
        yield PromptRow(
            q=q[row][:, new.where].to(dtype),
            k=k[row, :, : new.count].to(dtype),
            scaling=scaling,
            layer=layer,
            rotate=rotate,
        )


def whole(place: Placement) -> bool:
    """Whether each row begins with its first token: what came before would be another forward's."""
    return all(new.position == 0 for new in place.tokens() if new.count)
