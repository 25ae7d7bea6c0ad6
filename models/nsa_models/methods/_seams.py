"""The two places where a method meets a model: transformers' attention interface, and our own decoder."""

from __future__ import annotations

import inspect
import weakref
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import sdpa_mask

from nsa_models.attention import FullAttention, causal_attention
from nsa_models.batch import RaggedBatch, SteadyBatch
from nsa_models.lower_right import stock_attention
from nsa_models.methods._base import Method, MethodError
from nsa_models.methods._beside import Allocation, Held
from nsa_models.methods._handle import Attached, name_of
from nsa_models.methods._listed import listed
from nsa_models.methods._paged import Paged
from nsa_models.methods._placement import NewTokens, Placement
from nsa_models.methods._reads import Now
from nsa_models.methods._rotary import Rotation, frequencies, measured, moving_type, unmoved
from nsa_models.trained import trained_sparsity

IMPLEMENTATION = "nsa_eval_method"
"""The name under which transformers finds our attention."""

# Layer types of transformers' configs; what isn't named here is another kind of layer than attention.
_FULL = ("full_attention",)
_KEPT_DENSE = {
    "sliding_attention": "sliding window",
    "chunked_attention": "attention within chunks",
}

# Positions between the two looks at a model's queries, fewer where the model is shorter. A prime, so that no
# usual frequency comes round to where it was.
_LOOK = 97

_handles: weakref.WeakKeyDictionary[nn.Module, StockAttached] = weakref.WeakKeyDictionary()
"""Whose attention module it is: two models with methods never mix."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ANN401 - what each model hands to its attention
) -> tuple[Tensor, Tensor | None]:
    """Find the handle of a module; one without (a config shared between models) is dense."""
    handle = _handles.get(module)
    if handle is None:
        return stock_attention(module, query, key, value, attention_mask, **kwargs)
    return handle.forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _attention)
# Without a mask function of the same name, transformers would pass no mask at all.
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


class StockAttached(Attached):
    """A method on a decoder of transformers."""

    def __init__(
        self, model: PreTrainedModel, method: Method, auto_phase: Literal["generate"] | None
    ) -> None:
        """Look at the model's config; refuse what isn't plain causal attention.

        Raises:
            MethodError: See `_refuse_model`.
        """
        _refuse_model(model, method)
        super().__init__(
            model,
            method,
            num_layers=int(model.config.num_hidden_layers),
            unfit=_dense_by_kind(model),
            auto_phase=auto_phase,
        )
        self._before: str | None = None
        self._seen: tuple[weakref.ref[Tensor], Placement] | None = None
        self._looks: dict[int, Tensor] | None = None
        self._hooks: list[RemovableHandle] = []
        self._caches: dict[int, tuple[weakref.ref[DynamicLayer], Allocation]] = {}
        """Each layer's cache, and where it had the keys as the layer began. A layer that fails midway leaves
        it here, and mustn't keep it alive."""

    def _install(self, model: PreTrainedModel) -> None:
        for module in model.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                _handles[module] = self
        self._before = model.config._attn_implementation
        model.set_attn_implementation(IMPLEMENTATION)
        if model.config._attn_implementation != IMPLEMENTATION:
            raise MethodError(f"{self.method.name}: {name_of(model)} doesn't let its attention be replaced")
        if self.method.needs_rotary:
            self._find_rotations(model)
        if isinstance(listed(self.method), Paged):
            self._hooks = [
                module.register_forward_pre_hook(self._note_cache, with_kwargs=True)
                for module in model.modules()
                if _handles.get(module) is self and module.layer_idx in self.layers
            ]

    def _remove(self, model: PreTrainedModel) -> None:
        if self._before is not None:
            model.set_attn_implementation(self._before)
        for module in model.modules():
            if _handles.get(module) is self:
                del _handles[module]
        for hook in self._hooks:
            hook.remove()
        self._seen = None

    def _note_cache(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note where the cache that a layer is called with has its keys, before its own are added.

        Of the kinds of cache only the one that keeps all keys as they are, in a tensor, is looked at.
        """
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        self._caches.pop(layer, None)
        cache = next((one for one in (*kwargs.values(), *args) if isinstance(one, Cache)), None)
        if cache is None or layer >= len(cache.layers):
            return
        held = cache.layers[layer]
        if type(held) is DynamicLayer and held.is_initialized and held.keys is not None:
            self._caches[layer] = weakref.ref(held), Allocation(held.keys)

    def _held(self, layer: int, key: Tensor) -> Held:
        """Where the keys of a layer lie, if the model attends to what its cache has as it is."""
        if layer not in self._caches:
            return Held()
        known, before = self._caches.pop(layer)
        cache, given = known(), Allocation(key)
        as_it_is = cache is not None and given == Allocation(cache.keys)
        return Held(before=before, after=given) if as_it_is else Held()

    def forward(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,  # noqa: ANN401 - as in `_attention`
    ) -> tuple[Tensor, Tensor | None]:
        """transformers' attention function: query [B, H, n, d], key and value [B, H_kv, S, ...], a mask."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if self._looks is not None:
            self._looks[layer] = query.detach()
            return stock_attention(module, query, key, value, attention_mask, **kwargs)
        self._refuse_call(layer, kwargs)
        phase = self._now(query.shape[2], key.shape[2])
        if layer in self._unfit:
            place = _windowed(query, key, attention_mask).counted(self._counts)
        else:
            place = self._place(query, key, attention_mask).counted(self._counts)
        given = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if given is None else float(given)
        held = self._held(layer, key)
        if not self._acts(layer, phase):
            self._kept.forget(layer, key)
            self._count(query, place, None, layer=layer, phase=phase, sparse=False)
            if self._watches(layer):
                self._watch(query, place.in_order(key), place, scaling=scaling, layer=layer, phase=phase)
            return stock_attention(module, query, key, value, attention_mask, **kwargs)
        out = self._sparse(
            query,
            place.in_order(key),
            place.in_order(value),
            place,
            scaling=scaling,
            layer=layer,
            phase=phase,
            held=held,
        )
        return out.transpose(1, 2).contiguous(), None

    def _place(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Placement:
        rows, queries, keys = query.shape[0], query.shape[2], key.shape[2]
        if mask is None:
            if 1 < queries < keys:
                raise MethodError(
                    f"{self.method.name}: a cache of fixed size hides where {queries} new tokens stand in "
                    f"{keys} columns; use a cache that grows (DynamicCache)"
                )
            return Placement.bottom_right(rows, queries, keys, query.device)
        # All layers of a forward share one mask, and reading it makes a GPU wait.
        if self._seen is not None and self._seen[0]() is mask:
            return self._seen[1]
        place = Placement.from_mask(mask) if mask.dtype == torch.bool and mask.shape[1] == 1 else None
        if place is None:
            raise MethodError(
                f"{self.method.name}: the attention mask ({mask.dtype}, {list(mask.shape)}) isn't plain "
                "causal attention over each row's tokens (packed rows, a prefix seen whole, weights of one's "
                "own, a cache of fixed size); give a 2-D mask of tokens and padding, and a cache that grows"
            )
        if place.positions.shape[0] != rows:
            place = Placement.from_mask(mask.expand(rows, -1, -1, -1))
            assert place is not None
        self._seen = (weakref.ref(mask), place)
        return place

    def _refuse_call(self, layer: int, kwargs: dict[str, Any]) -> None:
        """Refuse what changes the attention beyond q, k, v and a mask."""
        changing = {
            "softcap": "soft-capped logits",
            "s_aux": "learned sinks in the softmax",
            "position_bias": "a bias on the logits",
            "indices": "a selection of its own",
        }
        for name, what in changing.items():
            if kwargs.get(name) is not None:
                raise MethodError(f"{self.method.name}: this model's attention has {what} ({name}), refused")
        if layer in self.layers and kwargs.get("sliding_window") is not None:
            raise MethodError(f"{self.method.name}: layer {layer} has a sliding window that its config hides")
        if kwargs.get("is_causal") is False:
            raise MethodError(f"{self.method.name}: this model's attention isn't causal")
        if kwargs.get("output_attentions"):
            raise MethodError(
                f"{self.method.name}: attention weights aren't kept; leave output_attentions out"
            )

    @torch.no_grad()
    def _find_rotations(self, model: PreTrainedModel) -> None:
        """Look at the queries of one token at two positions.

        Alone, a token attends to itself only, so its state is the same in every layer wherever it stands, and
        a layer's two queries differ by its rotation and nothing else.
        """
        _refuse_rope(self.method, model)
        last = int(getattr(model.config, "max_position_embeddings", None) or _LOOK + 1) - 1
        moved = min(_LOOK, last)
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        looks = []
        for position in (0, moved):
            self._looks = {}
            try:
                model(input_ids=token, position_ids=token + position, use_cache=False)
                looks.append(self._looks)
            finally:
                self._looks = None
        candidates = frequencies(model)
        for layer in self.layers:
            start, end = looks[0][layer], looks[1][layer]
            if torch.equal(start, end):
                self._rotations[layer] = unmoved
                continue
            rotation = measured(start, end, moved, candidates)
            if rotation is None:
                raise MethodError(
                    f"{self.method.name}: it moves queries to other positions, and layer {layer} of "
                    f"{name_of(model)} has no rotary embedding that explains how its queries change "
                    "with theirs"
                )
            self._rotations[layer] = rotation


class DecoderAttached(Attached):
    """A method on this project's decoder with full attention."""

    def __init__(
        self, model: PreTrainedModel, method: Method, auto_phase: Literal["generate"] | None
    ) -> None:
        """Refuse the NSA decoder.

        Raises:
            MethodError: The model is sparse already.
        """
        if model.config.attention != "full":
            raise MethodError(
                f"{method.name}: {name_of(model)} has {model.config.attention!r} attention and is sparse "
                "already; attach methods to a dense model"
            )
        super().__init__(
            model, method, num_layers=model.config.num_hidden_layers, unfit={}, auto_phase=auto_phase
        )

    def _install(self, model: PreTrainedModel) -> None:
        if self.method.needs_rotary:
            _refuse_rope(self.method, model)
            (inv_freq,) = frequencies(model)
            rotation = Rotation(inv_freq=inv_freq, interleaved=False, at_end=False)
            self._rotations = dict.fromkeys(self.layers, rotation)
        for layer, module in enumerate(_full_attentions(model)):
            module.attend = partial(self.forward, layer)

    def _remove(self, model: PreTrainedModel) -> None:
        for module in _full_attentions(model):
            module.attend = causal_attention

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: RaggedBatch) -> Tensor:
        """As `causal_attention`: q [B, N, H, d], k and v [B, S, H_kv, ...]."""
        phase: Now = self._now(q.shape[1], k.shape[1])
        positions = batch.positions().expand(q.shape[0], -1)
        counts = self._counts if batch.full else batch.counts
        new = None
        if not isinstance(batch, SteadyBatch):  # whose positions the device alone knows
            new = tuple(NewTokens(column=0, count=batch.width, position=start) for start in batch.starts)
        place = Placement(positions=positions, first=batch.start, new=new).counted(counts)
        queries, scaling = q.transpose(1, 2), q.shape[-1] ** -0.5
        if not self._acts(layer, phase):
            self._kept.forget(layer, k)
            self._count(queries, place, None, layer=layer, phase=phase, sparse=False)
            if self._watches(layer):
                self._watch(queries, k.transpose(1, 2), place, scaling=scaling, layer=layer, phase=phase)
            return causal_attention(q, k, v, batch)
        return self._sparse(
            queries,
            k.transpose(1, 2),
            v.transpose(1, 2),
            place,
            scaling=scaling,
            layer=layer,
            phase=phase,
            held=Held.in_place(k),
        ).transpose(1, 2)


def _full_attentions(model: PreTrainedModel) -> list[FullAttention]:
    return [module for module in model.modules() if isinstance(module, FullAttention)]


def _windowed(query: Tensor, key: Tensor, mask: Tensor | None) -> Placement:
    """A placement for counting alone: how many keys each query of a windowed layer sees."""
    if mask is None:
        return Placement.bottom_right(query.shape[0], query.shape[2], key.shape[2], query.device)
    real = mask[:, 0].diagonal(offset=mask.shape[-1] - mask.shape[-2], dim1=1, dim2=2)
    return Placement(positions=mask[:, 0].sum(-1) - 1, real=real)


def _dense_by_kind(model: PreTrainedModel) -> dict[int, str]:
    """Layers that a method can't take, and why."""
    config = model.config
    kinds = list(getattr(config, "layer_types", None) or [])
    unfit = {layer: _KEPT_DENSE[kind] for layer, kind in enumerate(kinds) if kind in _KEPT_DENSE}
    if not kinds and getattr(config, "sliding_window", None):
        unfit = dict.fromkeys(range(int(config.num_hidden_layers)), _KEPT_DENSE["sliding_attention"])
    return unfit


def _refuse_model(model: PreTrainedModel, method: Method) -> None:
    """Refuse a model whose attention isn't plain causal softmax attention behind transformers' interface.

    Raises:
        MethodError: Saying which of its traits stands against it.
    """
    config, who = model.config, f"{method.name}: {name_of(model)}"
    if getattr(config, "is_encoder_decoder", False):
        raise MethodError(f"{who} is an encoder and a decoder; a method needs a decoder alone")
    if config.get_text_config() is not config:
        raise MethodError(f"{who} is a composite model; attach the method to its language model")
    trained = trained_sparsity(config)
    if trained is not None:
        raise MethodError(f"{who} is sparse already ({trained.label}); attach methods to a dense model")
    kinds = set(getattr(config, "layer_types", None) or [])
    others = sorted(kinds - {*_FULL, *_KEPT_DENSE})
    if others or any(DynamicCache(config=config).is_linear):
        kind = ", ".join(others) or "recurrent layers"
        raise MethodError(f"{who} has layers that aren't softmax attention ({kind})")
    if not getattr(model, "_supports_attention_backend", False):
        raise MethodError(
            f"{who} ({type(model).__name__}) has an attention of its own that can't be replaced: "
            "transformers' AttentionInterface doesn't reach it (_supports_attention_backend)"
        )
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise MethodError(f"{who} caps its logits softly (attn_logit_softcapping), which methods don't")
    if any(name.endswith("sinks") for name, _ in model.named_parameters()):
        raise MethodError(f"{who} has learned sinks in its softmax (s_aux), which methods don't")
    if method.needs_rotary and "position_ids" not in inspect.signature(model.forward).parameters:
        raise MethodError(f"{who} takes no position_ids, so its rotary embedding can't be found")


def _refuse_rope(method: Method, model: PreTrainedModel) -> None:
    """Refuse a rotary embedding that changes with the length, or scales what must be taken back.

    Raises:
        MethodError: With the embedding's type.
    """
    parameters = getattr(model.config, "rope_parameters", None)
    moving = moving_type(parameters)
    if moving is not None:
        raise MethodError(
            f"{method.name}: it moves queries to other positions, and the rotary embedding of "
            f"{name_of(model)} ({moving}) changes its frequencies with the length"
        )
    if method.takes_rotation_off and "yarn" in str(parameters):
        raise MethodError(
            f"{method.name}: it takes keys as they are before the rotary embedding, and that of "
            f"{name_of(model)} (yarn) scales them"
        )
