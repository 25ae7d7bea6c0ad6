"""Putting a method on a loaded model."""

from __future__ import annotations

from typing import Any, Literal

from transformers import PreTrainedModel

from nsa_models.methods._base import Method, MethodError
from nsa_models.methods._handle import Attached, attached_to, name_of, register
from nsa_models.methods._seams import DecoderAttached, StockAttached


def attach(
    model: PreTrainedModel, method: Method, *, auto_phase: Literal["generate"] | None = None
) -> Attached:
    """Put a method on a loaded model, in place.

    Any decoder of transformers that takes its attention from `AttentionInterface`, and this project's decoder
    with full attention. Dense layers and phases run as they do with transformers' `sdpa`.

    Args:
        model: The model; its weights aren't touched.
        method: From `make_method` or `parse_method`.
        auto_phase: "generate" takes each one-token forward that continues a cache for a decode step: a
            convenience for `model.generate()` in a notebook. It is wrong for prompts read in pieces of which
            one has a single token. Default: the phase is told, see `Attached`.

    Returns:
        The handle, also a context manager.

    Raises:
        MethodError: The model can't take the method; the message says what stands against it.

    Example:
        >>> with attach(model, parse_method("quest:2560"), auto_phase="generate") as attached:
        ...     model.generate(**prompt, max_new_tokens=64)
        ...     attached.reads.decode.per_query
    """
    if auto_phase not in (None, "generate"):
        raise MethodError(f'auto_phase must be None or "generate", got {auto_phase!r}')
    other = attached_to(model)
    if other is not None:
        raise MethodError(
            f"{method.name}: {other.method.label} is on this {name_of(model)} already, or on one that shares "
            "its config; detach it first"
        )
    attached: Attached = _seam(model)(model, method, auto_phase)
    register(model, attached)
    try:
        attached._install(model)
    except BaseException:
        attached.detach()
        raise
    return attached


def _seam(model: PreTrainedModel) -> type[Any]:
    """The kind of handle for a model."""
    own = getattr(model.config, "model_type", None) == "nsa_decoder"
    return DecoderAttached if own else StockAttached
