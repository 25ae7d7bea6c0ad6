"""Causal attention of a chunk against a cache, without a mask and without repeated KV heads.

transformers' `sdpa` makes a mask for every chunk that continues a cache, and the kernels that take one are
slow and copy each KV head for the queries of its group. Flash attention aligns its causal mask with the last
key (lower right), which is just what a chunk needs. Here it is an attention function of transformers, under
the name `IMPLEMENTATION`; in every other case it is `sdpa` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from nsa_kernels.lone_query import leaves_one_over, one_more_query
from nsa_kernels.spans import takes_flash
from nsa_models.feeding import current_feed
from nsa_models.trained import chooses_keys

IMPLEMENTATION = "sdpa_lower_right"
"""The name under which transformers finds it."""

# Query rows per masked call on a CPU: bounds the mask at rows x S.
_MASKED_ROWS = 512
# cuDNN plans each shape anew, in some 45 ms, so only chunks of the usual sizes go there. Measured on an H200
# with 32 heads of 64 and 8 KV heads: 8,192 queries against 65,536 keys take 8.6 ms so, 13.3 ms with flash.
_SPLIT_ROWS = 1024
_STEP = 1024


# What some models hand to their attention that isn't softmax over q.k alone.
_PARTICULARS = ("softcap", "position_bias", "s_aux", "cache")
# A choice of keys that stands in no mask: reading on without it would be full attention, silently.
_CHOICES = ("indices", "block_indices")


def lower_right_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Causal attention in which the last query stands at the last key's position.

    Args:
        q: [B, H, N, d_k].
        k: [B, H_kv, S, d_k], S >= N.
        v: [B, H_kv, S, d_v].
        scale: Factor on q.k; None = d_k ** -0.5.

    Returns:
        [B, H, N, d_v].
    """
    group = q.shape[1] // k.shape[1]
    if q.shape[2] == k.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=group > 1)
    if takes_flash(q, v):
        if q.shape[2] >= _SPLIT_ROWS and q.shape[2] % _STEP == 0 and k.shape[2] % _STEP == 0:
            return split_attention(q, k, v, scale=scale)
        # Decode steps too: where cuDNN is preferred, it plans each new length of the keys anew.
        out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, scale=scale)[0]
        return out
    if q.shape[2] == 1:  # sees all keys
        return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=group > 1)
    if q.is_cuda:  # float32: this kernel knows the alignment too, but not grouped heads
        k, v = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (k, v))
        bias = causal_lower_right(q.shape[2], k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return _masked(q, k, v, scale)


def split_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """The same in two calls of cuDNN, to the cache and within the chunk, merged by their log-sum-exp.

    cuDNN's is the fastest kernel on Hopper GPUs, and its causal mask is aligned with the first key alone.
    Shapes as `lower_right_attention`.
    """
    past = k.shape[2] - q.shape[2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    parts = [
        torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k[:, :, piece], v[:, :, piece], None, True, 0.0, causal, False, scale=scale
        )[:2]
        for piece, causal in ((slice(0, past), False), (slice(past, None), True))
    ]
    (before, before_lse), (within, within_lse) = parts
    shape = (*q.shape[:3], 1)
    share = torch.sigmoid(before_lse.reshape(shape) - within_lse.reshape(shape))  # float32, as both are
    return torch.lerp(within.float(), before.float(), share).to(q.dtype)


def _masked(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """The plain twin: a mask of some rows at a time."""
    length, total = q.shape[2], k.shape[2]
    columns = torch.arange(total, device=q.device)
    pieces = []
    for begin in range(0, length, _MASKED_ROWS):
        rows = q[:, :, begin : begin + _MASKED_ROWS]
        last = torch.arange(begin, begin + rows.shape[2], device=q.device) + total - length
        pieces.append(
            F.scaled_dot_product_attention(
                rows,
                k,
                v,
                attn_mask=columns <= last[:, None],
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )
    return torch.cat(pieces, dim=2)


def _mask(
    *args: Any,  # noqa: ANN401  (transformers' own)
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,  # noqa: ANN401  (transformers' own)
) -> Tensor | None:
    """No mask for a chunk at the cache's end whose rows have no padding; else the one of `sdpa`."""
    plain = mask_function is causal_mask_function and attention_mask is None and allow_is_causal_skip
    if plain and isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length:
        return None
    made: Tensor | None = sdpa_mask(
        *args,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        **kwargs,
    )
    return made


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,  # noqa: ANN401  (what each model hands to its attention)
) -> tuple[Tensor, Tensor | None]:
    """`sdpa`, but for tokens without a mask that continue a cache."""
    chosen = [name for name in _CHOICES if kwargs.get(name) is not None]
    if chosen:
        raise NotImplementedError(
            f"this model chooses its keys by {chosen[0]}, which {IMPLEMENTATION} doesn't read; use sdpa"
        )
    length, total = query.shape[2], key.shape[2]
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    feed = current_feed()
    if feed is not None:
        given = [name for name in (*_PARTICULARS, "sliding_window") if kwargs.get(name) is not None]
        if given or not causal:
            raise NotImplementedError(f"packed rows can't attend with {', '.join(given) or 'later tokens'}")
        return feed.attend(query, key, value, scale=scaling), None
    if attention_mask is None and length < total and causal:
        if not any(kwargs.get(name) is not None for name in _PARTICULARS):
            out = lower_right_attention(query, key, value, scale=scaling)
            return out.transpose(1, 2).contiguous(), None
        if length > 1:
            columns = torch.arange(total, device=query.device)
            last = torch.arange(total - length, total, device=query.device)
            attention_mask = (columns <= last[:, None])[None, None]
    return stock_attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def stock_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ANN401  (as `_attention`)
) -> tuple[Tensor, Tensor | None]:
    """transformers' `sdpa`, without CUDA's fault where all heads have one K/V and a mask (`lone_query`)."""
    queries = query.shape[2]
    one_for_all = key.shape[1] == 1 < query.shape[1]  # which transformers expands, with stride 0
    if attention_mask is not None and one_for_all and leaves_one_over(queries):
        query, attention_mask = one_more_query(query, attention_mask)
        if kwargs.get("position_bias") is not None:
            kwargs["position_bias"] = one_more_query(query, kwargs["position_bias"])[1]
    out, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return out[:, :queries], weights


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)


def prefer_lower_right(model: PreTrainedModel) -> bool:
    """Let a stock model whose attention is `sdpa` attend so; says whether it does.

    Models that can't let their attention be replaced keep it, and so do those whose code chooses keys: they
    mask by their choice under the name `sdpa`, and not under this one.
    """
    fits = getattr(model, "_supports_attention_backend", False) and not chooses_keys(model.config)
    if not fits or model.config._attn_implementation != "sdpa":
        return False
    model.set_attn_implementation(IMPLEMENTATION)
    return True
