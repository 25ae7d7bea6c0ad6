"""What a config says about its attention: hints that make the choice of a family safer, never bolder."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

# Fields that name a local window or chunk, in the configs of transformers.
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "window_size",
    "attention_window_size",
    "attention_chunk_size",
    "local_attention",
    "local_window_size",
    "attention_window",
    "local_attn_chunk_length",
    "lsh_attn_chunk_length",
)
# Fields that name the most keys that a token reads, chosen by an indexer or by Doge's bias, whatever its
# layers are called.
_SELECTIONS = ("index_topk", "indexer_budget", "keep_window_size")
# Fields that say, layer by layer, what kind of attention it is, and what full attention is called in them.
_LAYERS = ("layer_types", "attention_layers", "attention_types", "layers_block_type", "layer_block_types")
_FULL = ("full_attention", "attention", "global", "full")
_FEED_FORWARD = ("moe", "mlp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a model's config declares."""

    plain: bool
    """Nothing but full attention in every layer, as far as anything says."""
    windows: tuple[int, ...]
    """Local windows, chunks and selections, in tokens, that some layer may have."""
    longest: int | None
    """Tokens of the longest row that the model has positions for, where it says so."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Declared:
        """Read a model's config; a field that can't be read counts as not plain."""
        config = text_config(model)
        windows = tuple(size for name in _WINDOWS for size in _numbers(setting(config, name)) if size > 0)
        kinds = [kind for name in _LAYERS for kind in _words(setting(config, name))]
        local = any(kind not in (*_FULL, *_FEED_FORWARD) for kind in kinds)
        # Layers that are named one by one say whether a window is used; without, a window is.
        windowed = local if _words(setting(config, "layer_types")) else bool(windows) or local
        chosen = tuple(size for name in _SELECTIONS for size in _numbers(setting(config, name)) if size > 0)
        plain = not windowed and not chosen and not setting(config, "alibi") and _full_cache(model)
        named = [size for size in _numbers(setting(config, "max_position_embeddings")) if size > 0]
        return cls(
            plain=plain,
            windows=(windows if windowed else ()) + chosen,
            longest=learned_positions(model) or next(iter(named), None),  # XLNet, without limit, says -1
        )


@contextmanager
def narrowed(model: PreTrainedModel, longest: int, window: int) -> Iterator[bool]:
    """Give a model local windows of `window` tokens in place of those longer than `longest`, for a while.

    They are changed where transformers looks them up: in the text config, from which masks and caches are
    made in every forward, and in the attributes that modules have copied from it.

    Args:
        model: The model; put back as it was at the end.
        longest: Windows of up to so many tokens stay as they are.
        window: Tokens of those that don't.

    Yields:
        Whether there was one to change.
    """
    before: list[tuple[Any, str, int]] = []
    for owner in (text_config(model), *model.modules()):
        for name in (*_WINDOWS, *_SELECTIONS):
            value = vars(owner).get(name)
            if type(value) is int and value > longest:
                before.append((owner, name, value))
    try:
        for owner, name, _ in before:
            setattr(owner, name, window)
        yield bool(before)
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def text_config(model: PreTrainedModel) -> Any:  # noqa: ANN401 - a config of any class
    """The config of a model's decoder."""
    try:
        return model.config.get_text_config(decoder=True)
    except Exception:  # a config of its own making, or one that is ambiguous
        return model.config


def setting(config: Any, name: str) -> Any:  # noqa: ANN401 - whatever the config keeps there
    """A config's field, or None where there is none or it can't be read.

    Configs that differ layer by layer raise when asked for one value (Gemma 4's head_dim).
    """
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward names `argument`."""
    return argument in inspect.signature(model.forward).parameters


def learned_positions(model: PreTrainedModel) -> int | None:
    """Rows of a table of learned positions, less those that it keeps for itself; None without a table.

    It is looked for beside the embeddings of the tokens: an image's patches have positions of their own.
    """
    words = model.get_input_embeddings()
    names = [name for name, module in model.named_modules() if module is words]
    beside = names[0].rpartition(".")[0] if names else ""
    for name, module in model.named_modules():
        parent, _, last = name.lower().rpartition(".")
        named = last == "wpe" or ("position" in last and "relative" not in last)
        if not named or parent != beside.lower() or not isinstance(module, nn.Embedding):
            continue
        offset = getattr(module, "offset", None)
        if offset is None:
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
        return int(module.num_embeddings) - int(offset)
    return None


def activation_bytes(model: PreTrainedModel) -> int:
    """What one token needs in a layer at once, in bytes, roughly: the MLP's halves and some hidden states.

    An estimate for sizing batches; a config that can't be read never stops a run.
    """
    config = text_config(model)
    sizes = list(_numbers(setting(config, "hidden_size")))
    words = model.get_input_embeddings()
    hidden = max(sizes, default=int(words.weight.shape[-1]) if words is not None else 4096)
    inner = max(_numbers(setting(config, "intermediate_size")), default=4 * hidden)
    return (2 * inner + 8 * hidden) * int(model.dtype.itemsize)


def _full_cache(model: PreTrainedModel) -> bool:
    """Whether transformers' own cache for this config has layers of full attention alone."""
    try:
        cache = DynamicCache(config=model.config)
    except Exception:  # Raised for layers that it doesn't know.
        return False
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _numbers(given: Any) -> Iterable[int]:  # noqa: ANN401 - a config's field
    if isinstance(given, bool) or given is None:
        return
    if isinstance(given, (int, float)):
        yield int(given)
    elif isinstance(given, (list, tuple)):
        for part in given:
            yield from _numbers(part)


def _words(given: Any) -> Iterable[str]:  # noqa: ANN401 - a config's field
    if isinstance(given, str):
        return [given]
    if isinstance(given, (list, tuple)):
        return [word for part in given for word in _words(part)]
    return []
