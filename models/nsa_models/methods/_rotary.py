"""Turning queries to other positions with a model's own rotary embedding, found by measuring it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# How far two queries may differ that ought to be the same, relative to the largest entry. A wrong layout is
# off by about 1; float32 angles and half precision are off by far less.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}

# Frequencies of these types change with the longest position read, so that a turn has no fixed angle.
_MOVING = ("dynamic", "longrope")


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Which coordinates of a head turn together, and how fast."""

    inv_freq: Tensor
    """[r / 2] angles a position; r coordinates turn, the others stay."""
    interleaved: bool
    """Pairs are neighbours (2i, 2i + 1); otherwise i and i + r / 2."""
    at_end: bool
    """The turning coordinates are a head's last ones; otherwise its first."""

    def __call__(self, q: Tensor, moved: Tensor) -> Tensor:
        """Turn q [B, H, n, d] by `moved` [B, n] positions.

        It is a pure turn: a factor that the embedding puts on cosines and sines (YaRN's) is in q already.
        """
        width = 2 * self.inv_freq.numel()
        start = q.shape[-1] - width if self.at_end else 0
        angles = moved[:, None, :, None].double() * self.inv_freq.to(moved.device).double()
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
        part = q[..., start : start + width]
        if self.interleaved:
            first, second = part[..., 0::2], part[..., 1::2]
        else:
            first, second = part.chunk(2, dim=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        whole = torch.stack(turned, dim=-1).flatten(-2) if self.interleaved else torch.cat(turned, dim=-1)
        return torch.cat([q[..., :start], whole, q[..., start + width :]], dim=-1)


def unmoved(q: Tensor, moved: Tensor) -> Tensor:
    """The turn of a layer without position embedding: none."""
    return q


def moving_type(parameters: object) -> str | None:
    """The rope_type in a config's `rope_parameters` (or of a layer type) that changes with the length."""
    if not isinstance(parameters, Mapping):
        return None
    for key, value in parameters.items():
        found = moving_type(value)
        if found is None and key in ("rope_type", "type") and any(kind in str(value) for kind in _MOVING):
            found = str(value)
        if found is not None:
            return found
    return None


def frequencies(model: nn.Module) -> list[Tensor]:
    """All different frequency vectors that the model's rotary modules hold."""
    found: list[Tensor] = []
    for name, buffer in model.named_buffers():
        last = name.rpartition(".")[2]
        if not last.endswith("inv_freq") or last.endswith("original_inv_freq") or buffer.dim() != 1:
            continue
        if not any(torch.equal(buffer, other) for other in found if other.shape == buffer.shape):
            found.append(buffer)
    return found


def measured(start: Tensor, moved: Tensor, by: int, candidates: Iterable[Tensor]) -> Rotation | None:
    """The rotation that takes queries `start` to `moved`, `by` positions on.

    Half-split and interleaved pairs, at either end of a head, are tried on each frequency vector: what a
    model does is seen in its queries, whatever its code calls it.

    Args:
        start: [1, H, 1, d] queries of one token.
        moved: The same token's, `by` positions further on.
        by: Positions.
        candidates: Frequency vectors.

    Returns:
        None if no rotation does.
    """
    scale = float(start.abs().max())
    tolerance = _TOLERANCE.get(start.dtype, 4e-2) * scale
    precise = torch.float64 if start.dtype == torch.float64 else torch.float32
    step = torch.full((1, 1), by, device=start.device)
    best: tuple[float, Rotation | None] = (tolerance, None)
    for inv_freq in candidates:
        if not 0 < 2 * inv_freq.numel() <= start.shape[-1]:
            continue
        for at_end in (False, True) if 2 * inv_freq.numel() < start.shape[-1] else (False,):
            for interleaved in (False, True):
                rotation = Rotation(inv_freq=inv_freq, interleaved=interleaved, at_end=at_end)
                error = float((rotation(start.to(precise), step) - moved.to(precise)).abs().max())
                if error < best[0]:
                    best = (error, rotation)
    return best[1]
