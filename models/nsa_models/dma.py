"""Doge's Dynamic Mask Attention (arXiv 2508.02124) with a rule for ties.

A key's bias is made of its value alone, and a value knows no position: in the first layer all tokens of one
id have the same bias, and so has every second "the" of a text. transformers leaves to `torch.topk` which of
them are read. It answers otherwise for another number of columns, so that a token's logits changed with how
many tokens followed it, and with what was cached. Here the earlier key is read, as everywhere in this
project. Which forward a value was made in moves its last bits, so biases tie that agree in 14 bits; bfloat16,
in which such models are trained, has 8.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.doge.modeling_doge import DogeAttention

from nsa_models.methods import keep_top

_BITS = 14
"""Of a bias that rank it. Rounding of float32 moves the 20th."""


def settle_ties(model: PreTrainedModel) -> None:
    """Give every attention of a Doge model the rule, in place; other models stay as they are."""
    for module in model.modules():
        if isinstance(module, DogeAttention) and "prepare_dynamic_mask" not in vars(module):
            module.prepare_dynamic_mask = partial(_dynamic_mask, module)


def _dynamic_mask(
    module: nn.Module,
    hidden_states: Tensor,
    dt_states: Tensor,
    keep_window_size: int = 2048,
    attention_mask: Any = None,  # noqa: ANN401 - a tensor, or flex attention's BlockMask
) -> Tensor:
    """As `DogeAttention.prepare_dynamic_mask`: a key's bias, or the lowest number where it isn't read.

    Args:
        module: Whose mask it is.
        hidden_states: [B, n, hidden].
        dt_states: [B, H_kv, S] biases.
        keep_window_size: Keys that a query reads.
        attention_mask: [B, 1, n, S], booleans (True = visible) or numbers (0 = visible).

    Returns:
        [B, H_kv, n, S].
    """
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        made: Tensor = DogeAttention.prepare_dynamic_mask(
            module, hidden_states, dt_states, keep_window_size, attention_mask
        )
        return made
    bias = dt_states[:, :, None, :].expand(-1, -1, hidden_states.shape[1], -1)
    visible = torch.ones_like(bias[:, :1], dtype=torch.bool)
    if attention_mask is not None:
        mask = attention_mask[..., : bias.shape[-1]]
        visible = mask if mask.dtype == torch.bool else mask == 0
    if bias.shape[-1] > keep_window_size:
        digits, exponent = torch.frexp(bias.float() if bias.dtype != torch.float64 else bias)
        rank = torch.ldexp(torch.round(digits * 2**_BITS), exponent)
        visible = keep_top(rank, keep_window_size, visible)
    return bias.masked_fill(~visible, torch.finfo(hidden_states.dtype).min)
