"""How long a request a checkpoint can take, told by its config.json alone: nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nsa_eval.catalog import checkpoint_config

_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
"""Where a config says its longest sequence, in the order in which lm-eval's `resolve_max_length` looks."""


def declared_max_length(path: str) -> int | None:
    """The longest sequence that a checkpoint's config names.

    Args:
        path: `zoo:NAME`, a folder, or a hub id.

    Returns:
        Tokens; None for a hub id, and where config.json says nothing or can't be read.
    """
    config = checkpoint_config(path)
    return None if config is None else _longest(config)


def _longest(config: Mapping[str, Any]) -> int | None:
    inner = config.get("text_config")
    named = inner if isinstance(inner, Mapping) else config
    for key in _KEYS:
        if key in named:
            value = named[key]
            return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
    return None
