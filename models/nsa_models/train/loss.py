"""Next-token losses without the logits: the vocabulary is multiplied a chunk of tokens at a time, twice.

The forward keeps one number a token, the log of the softmax's denominator; the backward makes each chunk's
logits again. What exists at once is [chunk, vocabulary], not [tokens, vocabulary].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# 8,192 x 4,096 logits are 64 MiB in bf16: large enough for a matrix product at full speed, small beside a
# model's activations.
CHUNK = 8192


def token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int = CHUNK, compiled: bool = False
) -> Tensor:
    """-log softmax(hidden @ weight.T)[target] of each token.

    Products run in autocast's dtype where it is on, else in `hidden`'s; softmax and sums in float32 (float64
    for float64).

    Args:
        hidden: [T, d].
        weight: [V, d], of the output layer.
        targets: [T] int64, below V.
        chunk: Tokens whose logits exist at once.
        compiled: Let torch.compile fuse what stands between the products, for all lengths at once.

    Returns:
        [T] losses in nats.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    losses: Tensor = _TokenLosses.apply(hidden, weight, targets, chunk, compiled)
    return losses


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        compiled: bool,
    ) -> Tensor:
        matrix, read = weight.to(hidden.dtype), _fused(_read) if compiled else _read
        parts = [
            read(F.linear(some, matrix), wanted)
            for some, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        losses, normalizers = (torch.cat(each) for each in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, targets, normalizers)
        ctx.chunk, ctx.compiled = chunk, compiled
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: ANN401
        hidden, weight, targets, normalizers = ctx.saved_tensors
        matrix, slope = weight.to(hidden.dtype), _fused(_slope) if ctx.compiled else _slope
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        pieces = (x.split(ctx.chunk) for x in (hidden, targets, normalizers, grad, grad_hidden))
        for some, wanted, normalizer, scale, out in zip(*pieces, strict=True):
            slopes = slope(F.linear(some, matrix), wanted, normalizer, scale)
            torch.mm(slopes, matrix, out=out)
            grad_weight += slopes.T @ some
        return grad_hidden, grad_weight, None, None, None


def _read(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [T] and log-sum-exp [T] of logits [T, V]."""
    precise = logits.to(_sums(logits.dtype))
    normalizers = torch.logsumexp(precise, dim=-1)
    return normalizers - precise.gather(1, targets[:, None])[:, 0], normalizers


def _slope(logits: Tensor, targets: Tensor, normalizers: Tensor, grad: Tensor) -> Tensor:
    """Gradient [T, V] of the losses with respect to the logits, in the logits' dtype."""
    chances = (logits.to(normalizers.dtype) - normalizers[:, None]).exp()
    wanted = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return ((chances - wanted.to(chances.dtype)) * grad[:, None]).to(logits.dtype)


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@cache
def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    # dynamic: one compilation serves every number of tokens; one for each length cost 30 to 50 s a length.
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True)
    return compiled
