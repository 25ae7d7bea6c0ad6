"""How many cached tokens a model's attention reads and keeps, and their bytes: what a query costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from transformers import PreTrainedConfig, PreTrainedModel

from nsa_kernels import num_blocks
from nsa_models.configuration import NSADecoderConfig
from nsa_models.methods import Attached, attached_to
from nsa_models.trained import TrainedSparsity, trained_sparsity

# Tokens of a prompt whose end isn't near.
_FAR = 2**40


@dataclass(frozen=True, slots=True)
class KVCost:
    """Per head and layer, on average over the layers, of the query at position tokens - 1."""

    read: float
    """Cached tokens that it attends to, its own among them; a compressed key counts as one. Keys that an
    indexer reads to choose them don't count."""
    kept: float
    """Tokens that the cache holds then; NSA has keys and values for each branch."""
    read_bytes: float | None = None
    """Of keys and values that it reads, an indexer's keys among them, over all layers and heads; None where
    the config doesn't tell their width."""
    kept_bytes: float | None = None
    """Of keys and values that the cache holds, an indexer's keys among them, over all layers and heads."""
    least: float | None = None
    """As `read`, of the head that reads least; None where all read alike."""
    index: float = 0.0
    """Vectors of a key's width that a method reads besides, to choose (`Method.index_reads`)."""
    left: float | None = None
    """As `read`, each token as the part of its key's and value's elements that is read
    (`Method.vector_share`); None where that is all of them."""


class KVCosts(Protocol):
    """What queries of one model cost."""

    def __call__(self, tokens: int, prompt: int | None = None, /) -> KVCost:
        """As `kv_cost`."""
        ...


def kv_cost(
    model: PreTrainedModel,
    tokens: int,
    prompt: int | None = None,
    *,
    phase: Literal["prefill", "decode"] = "decode",
) -> KVCost:
    """What the query at position tokens - 1 reads and what is kept, with the method that is attached.

    Args:
        model: Any causal language model. Layers whose kind its config doesn't name count as full attention.
        tokens: Tokens of the row, the query's own among them.
        prompt: Those of its prompt, which some methods cut once. Default: all but the query's own; in prefill
            the query's end isn't near.
        phase: What the query is part of: a decode step, or a prompt that is read. A method may act in one of
            the two alone.
    """
    return kv_costs(model, phase=phase)(tokens, prompt)


def kv_costs(model: PreTrainedModel, *, phase: Literal["prefill", "decode"] = "decode") -> KVCosts:
    """`kv_cost` of a model as it is now, as a function of the tokens: for sums over many positions."""
    config = model.config
    itemsize = int(model.dtype.itemsize)
    if isinstance(config, NSADecoderConfig) and config.attention == "nsa":
        return _nsa_costs(config, itemsize)
    trained, text = trained_sparsity(config), config.get_text_config(decoder=True)
    if trained is not None:
        return lambda tokens, prompt=None, /: _trained(trained, text, tokens, itemsize)
    return _layer_costs(text, attached_to(model), itemsize, phase)


def _nsa_costs(config: NSADecoderConfig, itemsize: int) -> KVCosts:
    width = int(config.num_hidden_layers) * (token_width(config) or 0) * itemsize

    def costs(tokens: int, prompt: int | None = None, /) -> KVCost:
        cost = _nsa(config, tokens)
        # With one key for all branches the one before RoPE is held too, which is what gets compressed.
        held = cost.kept + (tokens / 2 if config.nsa_share_kv else 0)
        return replace(cost, read_bytes=cost.read * width, kept_bytes=held * width)

    return costs


def _layer_costs(
    text: PreTrainedConfig, attached: Attached | None, itemsize: int, phase: Literal["prefill", "decode"]
) -> KVCosts:
    """Of full and sliding attention, layer by layer, under the method that is attached."""
    window = getattr(text, "sliding_window", None)
    # Layers of one kind cost alike, unless a method that takes a row at a time tells them apart.
    dense = () if attached is None else attached.dense_layers
    apart = attached is not None and attached.method.rowwise
    kinds = Counter(
        (kind, index in dense, index if apart else -1) for index, kind in enumerate(_kinds(text, window))
    )
    layers, width = kinds.total(), token_width(text)

    def costs(tokens: int, prompt: int | None = None, /) -> KVCost:
        if prompt is None:
            prompt = tokens - 1 if phase == "decode" else _FAR
        of_kinds = [
            (count, _layer(kind, index, window, None if left_dense else attached, tokens, prompt, phase))
            for (kind, left_dense, index), count in kinds.items()
        ]
        # A method may read a part of each vector's elements only.
        parts = [1.0 if left_dense else _part(attached, tokens, text) for _, left_dense, _ in kinds]
        thinned = [(count * part, cost) for (count, cost), part in zip(of_kinds, parts, strict=True)]
        read, kept = (sum(n * c.read for n, c in of_kinds), sum(n * c.kept for n, c in of_kinds))
        least = sum(n * (c.read if c.least is None else c.least) for n, c in of_kinds)
        cut = attached is not None and attached.method.phase in ("both", phase) and min(parts) < 1
        return KVCost(
            read / layers,
            kept / layers,
            read_bytes=None if width is None else sum(n * c.read for n, c in thinned) * width * itemsize,
            kept_bytes=None if width is None else sum(n * c.kept for n, c in thinned) * width * itemsize,
            least=None if least == read else least / layers,
            index=sum(n * c.index for n, c in of_kinds) / layers,
            left=sum(n * c.read for n, c in thinned) / layers if cut else None,
        )

    return costs


def token_width(config: PreTrainedConfig) -> int | None:
    """Numbers that one layer's cache holds of a token: its key and its value in every KV head.

    Of latent attention (DeepSeek's) the latent and the rotated part, which all heads share: that is what
    transformers caches. None where the config's fields have other names, or layers differ.
    """
    heads = _field(config, "num_attention_heads")
    hidden = _field(config, "hidden_size")
    if not isinstance(heads, int) or not heads:
        return None
    latent, turned = _field(config, "kv_lora_rank"), _field(config, "qk_rope_head_dim")
    if isinstance(latent, int) and isinstance(turned, int):
        return latent + turned
    width = _field(config, "head_dim") or (hidden // heads if isinstance(hidden, int) else None)
    groups = _field(config, "num_key_value_heads") or heads
    if _field(config, "multi_query") and not _field(config, "new_decoder_architecture"):
        groups = 1
    return 2 * groups * width if isinstance(groups, int) and isinstance(width, int) else None


def _field(config: PreTrainedConfig, name: str) -> Any:  # noqa: ANN401 - whatever the config keeps there
    """A field, or None: configs that differ layer by layer raise when asked for one value."""
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def _kinds(text: PreTrainedConfig, window: int | None) -> list[str]:
    """The attention of each layer, by the config's own list, or the same for all."""
    named = getattr(text, "layer_types", None)
    if named:
        return list(named)
    sliding = window is not None and getattr(text, "use_sliding_window", True)
    return ["sliding_attention" if sliding else "full_attention"] * (
        getattr(text, "num_hidden_layers", 1) or 1
    )


def _part(attached: Attached | None, tokens: int, text: PreTrainedConfig) -> float:
    """Part of each vector's elements that are read and kept."""
    if attached is None:
        return 1.0
    heads, hidden = _field(text, "num_attention_heads"), _field(text, "hidden_size")
    width = _field(text, "head_dim") or (hidden // heads if heads and hidden else 1)
    return attached.method.vector_share(tokens, int(width))


def _layer(
    kind: str,
    index: int,
    window: int | None,
    attached: Attached | None,
    tokens: int,
    prompt: int,
    phase: Literal["prefill", "decode"],
) -> KVCost:
    if kind == "linear_attention":
        return KVCost(0, 0)  # a state of fixed size, no keys
    if kind in ("sliding_attention", "chunked_attention") and window:
        return KVCost(min(window, tokens), min(window, tokens))
    if attached is None:
        return KVCost(tokens, tokens)
    method = attached.method
    kept = method.stated_kept(tokens, prompt=min(prompt, tokens))
    if method.phase not in ("both", phase):
        return KVCost(tokens, kept)
    least, _ = method.stated_reads(tokens, prompt=prompt, layer=index)
    return KVCost(
        method.mean_reads(tokens, prompt=prompt, layer=index),
        kept,
        least=least,
        index=method.index_reads(tokens),
    )


def _nsa(config: NSADecoderConfig, tokens: int) -> KVCost:
    cmp, slc, win = (branch not in config.closed_branches for branch in range(3))
    blocks = num_blocks(tokens, config.geometry)
    selected = min(tokens, config.nsa_select_count * config.nsa_select_block)
    # Compressed keys choose the blocks, so that they are read for the selected branch too.
    read = blocks * (cmp or slc) + selected * slc + min(tokens, config.nsa_window) * win
    kept = (tokens if config.nsa_share_kv else 3 * tokens) + blocks
    return KVCost(read, kept)


def _trained(trained: TrainedSparsity, text: PreTrainedConfig, tokens: int, itemsize: int) -> KVCost:
    """Of a model that was trained sparse, which takes no method: each layer within its window."""
    window = _field(text, "sliding_window")
    seen = min(tokens, window) if isinstance(window, int) else tokens
    read, layers, width = min(seen, trained.budget), int(text.num_hidden_layers), token_width(text) or 0
    index = trained.index_numbers * tokens
    return KVCost(
        read,
        seen,
        read_bytes=(layers * read * width + index) * itemsize,
        kept_bytes=(layers * seen * width + index) * itemsize,
    )
