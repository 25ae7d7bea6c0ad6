"""How long a request a checkpoint can take, told by its config.json alone: nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsa_eval.catalog import zoo_folder

_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
"""Where a config says its longest sequence, in the order in which lm-eval's `resolve_max_length` looks."""
_LARGEST_CONFIG = 16 * 2**20
"""Bytes. A larger file is no config.json."""


def declared_max_length(path: str) -> int | None:
    """The longest sequence that a checkpoint's config names.

    Args:
        path: `zoo:NAME`, a folder, or a hub id.

    Returns:
        Tokens; None for a hub id, and where config.json says nothing or can't be read.
    """
    folder = zoo_folder(path) if path.startswith("zoo:") else Path(path).expanduser()
    file = folder / "config.json"
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST_CONFIG:
            return None
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # loading the checkpoint tells what is wrong with it
    return _longest(config) if isinstance(config, Mapping) else None


def _longest(config: Mapping[str, Any]) -> int | None:
    inner = config.get("text_config")
    named = inner if isinstance(inner, Mapping) else config
    for key in _KEYS:
        if key in named:
            value = named[key]
            return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
    return None
