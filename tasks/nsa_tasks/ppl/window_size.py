"""How far the buckets of `auto` reach: as far as the model takes tokens."""

from collections.abc import Mapping
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._parameters import read_token_count
from nsa_tasks.ppl.parameters import PositionParams, automatic

_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
"""Where a config says its longest sequence, in the order in which lm-eval looks."""


def bucket_ends(params: PositionParams, metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Where the buckets end.

    Args:
        params: Names them, or says "auto".
        metadata: The task's, with whatever lm-eval merged in: `window` (of `task_spec`) and `max_length` (of
            the model's arguments) count before the model's config.

    Raises:
        TaskParameterError: `auto` for a model whose window is not told, or is too small for buckets.
    """
    if not isinstance(params.buckets, str):
        return params.buckets
    told = metadata.get("window") or metadata.get("max_length")
    window = _named(params.task, told) or _declared(metadata)
    if window is None:
        raise TaskParameterError(
            f"{params.task}: buckets = auto: no window is named for this model (max_length, or its config's "
            "max_position_embeddings); give buckets, such as [1k, 2k, 4k]"
        )
    ends = automatic(window)
    if not ends:
        raise TaskParameterError(f"{params.task}: buckets = auto: a window of {window} tokens is too small")
    return ends


def _named(task: str, value: object) -> int | None:
    if value is None:
        return None
    try:
        return read_token_count(value)
    except ValueError as error:
        raise TaskParameterError(f"{task}: max_length = {value!r}: {error}") from None


def _declared(metadata: Mapping[str, Any]) -> int | None:
    """What the config of the model says, without loading its code."""
    from transformers import PretrainedConfig  # seconds to import, and not needed to list tasks

    for key in ("pretrained", "tokenizer"):
        path = metadata.get(key)
        if not isinstance(path, str) or not path:
            continue
        try:
            config, _ = PretrainedConfig.get_config_dict(path, revision=metadata.get("revision"))
        except (OSError, ValueError):
            continue  # a tokenizer may lie in a folder without a model
        inner = config.get("text_config")
        for name in _KEYS:
            value = (inner if isinstance(inner, Mapping) else config).get(name)
            if isinstance(value, int) and value > 0:
                return value
    return None
