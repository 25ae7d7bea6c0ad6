"""Whole prompts, for methods whose choices need all queries of one before the first of them reads."""

from __future__ import annotations

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

    def last_weights(self, count: int) -> Tensor:
        """Causal attention weights [H, m, n] of the last m = min(count, n) queries over all keys."""
        asked = min(count, self.length)
        at = torch.arange(self.length, device=self.q.device)
        logits = self.dot(self.q[:, -asked:], self.k) * self.scaling
        return logits.masked_fill(at > at[-asked:, None], float("-inf")).softmax(-1)


def prompt_rows(
    q: Tensor,
    k: Tensor,
    place: Placement,
    *,
    scaling: float,
    layer: int,
    rotate: Rotate | None = None,
) -> list[PromptRow | None] | None:
    """The prompts of a forward, row by row, wherever their padding stands.

    Args:
        q: [B, H, N, d].
        k: [B, H_kv, S, d], column s at position s.
        place: Where the queries stand.
        scaling: Factor of q.k.
        layer: Index of the layer.
        rotate: See `PromptRow`.

    Returns:
        A prompt for each row, None for one that has no token here; None for all if a row's queries don't
        begin at its first token: what came before was another forward's.
    """
    real = place.positions >= 0
    if place.real is not None:
        real = real & place.real
    counts = real.sum(-1)
    if not torch.equal(counts, place.positions.masked_fill(~real, -1).amax(-1) + 1):
        return None
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows: list[PromptRow | None] = []
    for row, count in enumerate(counts.tolist()):
        if not count:
            rows.append(None)
            continue
        queries = q[row] if count == q.shape[2] else q[row][:, real[row]]
        rows.append(
            PromptRow(
                q=queries.to(dtype),
                k=k[row, :, :count].to(dtype),
                scaling=scaling,
                layer=layer,
                rotate=rotate,
            )
        )
    return rows
