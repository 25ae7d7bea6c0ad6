"""How a batch of token rows is run through a family of models: the one place that knows their caches."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

# Where steps of fixed shapes are used. A CPU has no launches to save, and reads the room behind the rows.
STEADY_DEVICES = ("cuda",)
# Of full attention's kernels only the one without a mask splits a row's keys over the whole GPU. Rows of one
# length don't need a mask, and beyond so many tokens that kernel saves more than a graph does (an estimate).
_DENSE_STEADY_TOKENS = 16384


@dataclass(slots=True, kw_only=True)
class Rows:
    """What a model has read of B rows so far, and can go on from."""

    cache: Cache | None
    lengths: list[int]
    """Tokens read of each row."""
    mask: Tensor | None = None
    """[B, S] cache columns that hold a token, or None when all of them do."""


class SteadyDecoder(Protocol):
    """Decodes the rows that it was made for in steps of fixed shapes, and keeps their cache up to date."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed one token to every row; logits [B, V] of the next, good until the next step."""
        ...


class Family(Protocol):
    """One way of batching and continuing rows; `family_of` picks it for a model."""

    ragged: bool
    """Rows of different lengths may share a batch that is continued. Without it, only rows of equal length
    do; a right-padded batch that nothing continues is always fine, as no token sees what follows it."""
    continuable: bool
    """A forward of several tokens may continue a cache: chunked prefill and shared prefixes."""
    resume_tokens: int
    """What going on from a cache with a few tokens costs a row, in tokens of plain prefill."""
    caches: bool
    """The model keeps a cache that this engine can use; without it only log-likelihoods are possible."""

    def empty(self, rows: int) -> Rows:
        """`rows` rows that have read nothing."""
        ...

    def inputs(self, tokens: Tensor, counts: list[int], rows: Rows | None) -> dict[str, Any]:
        """Arguments of one forward in which row b reads the first counts[b] of right-padded `tokens` [B, N].

        With rows=None nothing was read before, and nothing is kept.
        """
        ...

    def advance(self, counts: list[int], width: int, rows: Rows) -> None:
        """Note in `rows` what a forward of `width` columns appended."""
        ...

    def select(self, rows: Rows, indices: list[int]) -> Rows:
        """Rows `indices` (repeats allowed) as new rows; the old ones stay as they are."""
        ...

    def join(self, parts: list[Rows]) -> Rows:
        """All rows as one batch, in order; ragged families only. The parts are used up."""
        ...

    def steady(self, rows: Rows, new_tokens: int) -> SteadyDecoder | None:
        """Steps of fixed shapes for up to `new_tokens` tokens more, where there are such and they help."""
        ...


class _CacheFamily:
    """What all families with a transformers `Cache` share."""

    ragged = True
    continuable = True
    resume_tokens = 8
    caches = True

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def empty(self, rows: int) -> Rows:
        return Rows(cache=DynamicCache(config=self.model.config), lengths=[0] * rows)

    def inputs(self, tokens: Tensor, counts: list[int], rows: Rows | None) -> dict[str, Any]:
        if rows is None:
            return {"input_ids": tokens, "use_cache": False} if self.caches else {"input_ids": tokens}
        return {"input_ids": tokens, "past_key_values": rows.cache, "use_cache": True}

    def advance(self, counts: list[int], width: int, rows: Rows) -> None:
        rows.lengths = [length + count for length, count in zip(rows.lengths, counts, strict=True)]

    def select(self, rows: Rows, indices: list[int]) -> Rows:
        assert rows.cache is not None, "nothing was read yet"
        cache = copy.copy(rows.cache)
        cache.layers = [_detached(layer) for layer in rows.cache.layers]
        index = torch.tensor(indices, dtype=torch.long, device=self.model.device)
        # reorder_cache is an index_select; unlike batch_select_indices, every kind of layer has it.
        cache.reorder_cache(index)
        mask = None if rows.mask is None else rows.mask[index]
        return Rows(cache=cache, lengths=[rows.lengths[i] for i in indices], mask=mask)

    def join(self, parts: list[Rows]) -> Rows:
        raise NotImplementedError(f"{type(self).__name__} doesn't join rows of different lengths")

    def steady(self, rows: Rows, new_tokens: int) -> SteadyDecoder | None:
        return None


class StockFamily(_CacheFamily):
    """transformers' decoders with full attention in every layer and explicit positions.

    A right-padded prefill leaves holes in the cache of the shorter rows. They stay there: a 2-D mask hides
    them and positions are passed, so every row goes on at its own length.
    """

    def inputs(self, tokens: Tensor, counts: list[int], rows: Rows | None) -> dict[str, Any]:
        given = super().inputs(tokens, counts, rows)
        if rows is None or rows.mask is None:
            return given
        width = tokens.shape[1]
        # Padding of this very piece follows its row's tokens, so causality alone hides it.
        given["attention_mask"] = torch.cat([rows.mask, rows.mask.new_ones(len(counts), width)], dim=1)
        first = torch.tensor(rows.lengths, device=tokens.device)[:, None]
        last = first + torch.tensor(counts, device=tokens.device)[:, None].clamp(min=1) - 1
        # Padding gets the last token's position: a learned position table may have no further ones.
        given["position_ids"] = torch.minimum(first + torch.arange(width, device=tokens.device), last)
        return given

    def advance(self, counts: list[int], width: int, rows: Rows) -> None:
        if rows.mask is not None or any(count != width for count in counts):
            device = self.model.device
            new = torch.arange(width, device=device) < torch.tensor(counts, device=device)[:, None]
            old = new.new_ones(len(counts), rows.lengths[0]) if rows.mask is None else rows.mask
            rows.mask = torch.cat([old, new], dim=1)
        super().advance(counts, width, rows)

    def join(self, parts: list[Rows]) -> Rows:
        whole = parts[0].cache
        assert whole is not None
        for index, layer in enumerate(whole.layers):
            # Layer by layer, so that no more than one layer is ever there twice.
            twins = [part.cache.layers[index] for part in parts if part.cache is not None]
            keys, values = [twin.keys for twin in twins], [twin.values for twin in twins]
            for twin in twins:
                twin.keys = twin.values = None
            layer.keys, layer.values = _stacked(keys, -2), _stacked(values, -2)
        widths = [max(part.lengths) if part.mask is None else part.mask.shape[1] for part in parts]
        lengths = [length for part in parts for length in part.lengths]
        mask = None
        if any(part.mask is not None for part in parts) or len(set(widths)) > 1:
            device = self.model.device
            masks = [
                torch.ones(len(part.lengths), width, dtype=torch.bool, device=device)
                if part.mask is None
                else part.mask
                for part, width in zip(parts, widths, strict=True)
            ]
            mask = _stacked(masks, 1)
        return Rows(cache=whole, lengths=lengths, mask=mask)


class EqualFamily(_CacheFamily):
    """Decoders whose cache or positions can't skip holes: sliding windows, ALiBi, recurrent layers.

    A sliding cache drops columns by their number, so only rows of equal length are continued together.
    """

    ragged = False

    def __init__(self, model: PreTrainedModel, *, continuable: bool, caches: bool) -> None:
        super().__init__(model)
        self.continuable = continuable
        self.caches = caches


class OwnLengthsFamily(_CacheFamily):
    """The project's decoder: its cache keeps each row's length; a mask marks a piece's tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        if getattr(model.config, "attention", None) == "nsa" and model.device.type == "cpu":
            # Measured: on a CPU, a few tokens that go on from a cache choose their blocks row by row, and a
            # four-choice question gains from a shared context only when that has some 200 tokens.
            self.resume_tokens = 150

    def empty(self, rows: int) -> Rows:
        return Rows(cache=None, lengths=[0] * rows)  # the model makes its own cache on the first forward

    def inputs(self, tokens: Tensor, counts: list[int], rows: Rows | None) -> dict[str, Any]:
        given = super().inputs(tokens, counts, rows)
        width = tokens.shape[1]
        # Rows that end here need no mask: no token sees the padding behind it.
        if rows is not None and any(count != width for count in counts):
            new = torch.arange(width)[None] < torch.tensor(counts)[:, None]
            given["attention_mask"] = new.to(tokens.device)
        return given

    def join(self, parts: list[Rows]) -> Rows:
        whole = parts[0].cache
        assert whole is not None
        for index, layer in enumerate(whole.layers):
            twins: list[Any] = [part.cache.layers[index] for part in parts if part.cache is not None]
            buffers = [twin.buffers for twin in twins]
            lengths = [twin.lengths for twin in twins]
            rows = [len(part.lengths) for part in parts]
            for twin in twins:
                twin.buffers = {}
            # Short rows may have no complete block yet, and so no buffer of compressed keys.
            like = {name: buffer for some in buffers for name, buffer in some.items()}
            layer.buffers = {
                name: _stacked(
                    [
                        some[name] if name in some else like[name].new_zeros(count, 0, *like[name].shape[2:])
                        for some, count in zip(buffers, rows, strict=True)
                    ],
                    1,
                )
                for name in like
            }
            layer.lengths = [length for some in lengths for length in some]
        return Rows(cache=whole, lengths=[length for part in parts for length in part.lengths])

    def steady(self, rows: Rows, new_tokens: int) -> SteadyDecoder | None:
        from nsa_models import DecodeGraph, NSACache, NSADecoderForCausalLM, why_not_captured

        device = self.model.device.type
        if device not in STEADY_DEVICES or not isinstance(self.model, NSADecoderForCausalLM):
            return None
        if device == "cuda" and why_not_captured(self.model) is not None:
            return None
        dense = self.model.config.attention == "full" and len(set(rows.lengths)) == 1
        if dense and rows.lengths[0] > _DENSE_STEADY_TOKENS:
            return None
        assert isinstance(rows.cache, NSACache)
        return DecodeGraph(self.model, rows.cache, max_new_tokens=new_tokens)


def family_of(model: PreTrainedModel) -> Family:
    """Pick the family by what the model's config, cache and signature say."""
    config = model.config
    if getattr(config, "model_type", None) == "nsa_decoder":
        return OwnLengthsFamily(model)
    if not (accepts(model, "past_key_values") and accepts(model, "use_cache")):
        return EqualFamily(model, continuable=False, caches=False)
    cache = DynamicCache(config=config)
    if any(cache.is_linear) or not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        # Recurrent layers: many of them take a cached state only for one new token at a time.
        return EqualFamily(model, continuable=False, caches=True)
    full = all(type(layer) is DynamicLayer for layer in cache.layers)
    alibi = bool(getattr(config, "alibi", False))  # distances counted in cache columns, holes included
    if full and not alibi and accepts(model, "position_ids"):
        return StockFamily(model)
    return EqualFamily(model, continuable=True, caches=True)


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward names `argument`."""
    return argument in inspect.signature(model.forward).parameters


def _stacked(parts: list[Tensor], axis: int) -> Tensor:
    """Tensors of B_i rows each as one of sum(B_i), shorter ones filled up with zeros at the end of `axis`."""
    width = max(part.shape[axis] for part in parts)
    first = parts[0]
    shape = list(first.shape)
    shape[0], shape[axis] = sum(part.shape[0] for part in parts), width
    whole = first.new_zeros(shape)
    row = 0
    for part in parts:
        whole[row : row + part.shape[0]].narrow(axis, 0, part.shape[axis]).copy_(part)
        row += part.shape[0]
    return whole


def _detached(layer: Any) -> Any:  # noqa: ANN401 - transformers' layer classes share no typed base
    """A copy that can be reordered without changing the original.

    Reordering replaces tensors, so they needn't be copied; what holds them by name or number must be.
    """
    twin = copy.copy(layer)
    for name, value in vars(twin).items():
        if isinstance(value, (dict, list)):
            setattr(twin, name, copy.copy(value))
    return twin
