"""How many cached tokens a model's attention reads and keeps: the cost of a step in the field's own unit."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from nsa_kernels import num_blocks
from nsa_models.configuration import NSADecoderConfig
from nsa_models.methods import Attached, attached_to


@dataclass(frozen=True, slots=True)
class KVCost:
    """Per head and layer, on average over the layers, of the query at position tokens - 1."""

    read: float
    """Cached tokens that it attends to, its own among them; a compressed key counts as one."""
    kept: float
    """Tokens that the cache holds then; NSA has keys and values for each branch."""


def kv_cost(model: PreTrainedModel, tokens: int) -> KVCost:
    """What the query at position tokens - 1 reads and what is kept, with the method that is attached.

    Args:
        model: Any causal language model. Layers whose kind its config doesn't name count as full attention.
        tokens: Tokens of the row, the query's own among them.
    """
    config = model.config
    if isinstance(config, NSADecoderConfig) and config.attention == "nsa":
        return _nsa(config, tokens)
    attached = attached_to(model)
    text = config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    costs = [_layer(kind, index, window, attached, tokens) for index, kind in enumerate(_kinds(text, window))]
    return KVCost(sum(c.read for c in costs) / len(costs), sum(c.kept for c in costs) / len(costs))


def _kinds(text: PreTrainedConfig, window: int | None) -> list[str]:
    """The attention of each layer, by the config's own list, or the same for all."""
    named = getattr(text, "layer_types", None)
    if named:
        return list(named)
    sliding = window is not None and getattr(text, "use_sliding_window", True)
    return ["sliding_attention" if sliding else "full_attention"] * (
        getattr(text, "num_hidden_layers", 1) or 1
    )


def _layer(kind: str, index: int, window: int | None, attached: Attached | None, tokens: int) -> KVCost:
    if kind == "linear_attention":
        return KVCost(0, 0)  # a state of fixed size, no keys
    if kind in ("sliding_attention", "chunked_attention") and window:
        return KVCost(min(window, tokens), min(window, tokens))
    if attached is None or index in attached.dense_layers:
        return KVCost(tokens, tokens)
    method = attached.method
    read = tokens if method.phase == "prefill" else method.kv_reads(tokens)
    return KVCost(read, method.kv_kept(tokens))


def _nsa(config: NSADecoderConfig, tokens: int) -> KVCost:
    cmp, slc, win = (branch not in config.closed_branches for branch in range(3))
    blocks = num_blocks(tokens, config.geometry)
    selected = min(tokens, config.nsa_select_count * config.nsa_select_block)
    # Compressed keys choose the blocks, so that they are read for the selected branch too.
    read = blocks * (cmp or slc) + selected * slc + min(tokens, config.nsa_window) * win
    kept = (tokens if config.nsa_share_kv else 3 * tokens) + blocks
    return KVCost(read, kept)
