"""How many tokens the model that a task is for takes: told by the run, or declared by its files."""

from collections.abc import Mapping
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._parameters import read_token_count

_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
"""Where a config says its longest sequence, in the order in which lm-eval looks."""


def find_window(task: str, metadata: Mapping[str, Any]) -> int | None:
    """Find the window of the model that a task is for.

    Args:
        task: Task name, for messages.
        metadata: The task's, with whatever lm-eval merged in. `window` (of `task_spec`) and `max_length` (of
            the model's arguments) count before the config of the checkpoint, or of its tokenizer's folder.

    Returns:
        Tokens; None where nothing says it.

    Raises:
        TaskParameterError: What is told is no number of tokens.
    """
    for key in ("window", "max_length"):
        if metadata.get(key):
            try:
                return read_token_count(metadata[key])
            except ValueError as error:
                raise TaskParameterError(f"{task}: {key} = {metadata[key]!r}: {error}") from None
    return _declared(metadata)


def _declared(metadata: Mapping[str, Any]) -> int | None:
    """What a checkpoint's config.json says, read as data: its class need not be known."""
    from transformers import PretrainedConfig  # seconds to import, and not needed to list tasks

    for key in ("pretrained", "model", "tokenizer"):
        path = metadata.get(key)
        if not isinstance(path, str) or not path:
            continue
        try:
            config, _ = PretrainedConfig.get_config_dict(path, revision=metadata.get("revision"))
        except (OSError, ValueError, RecursionError):
            continue  # a tokenizer may lie in a folder without a model
        inner = config.get("text_config")
        named = inner if isinstance(inner, Mapping) else config
        for name in _KEYS:
            value = named.get(name)
            if isinstance(value, int) and value > 0:
                return value
    return None
