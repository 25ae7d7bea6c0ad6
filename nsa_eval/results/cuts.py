"""Cuts of prompts that a task makes by its own protocol, as it leaves them in its samples' documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def cut_by_task(doc: Mapping[str, Any]) -> tuple[int, int] | None:
    """The prompt's tokens before and after the cut; None for no cut.

    Such a task leaves in a sample's document `cut_from`, the tokens of the whole prompt, beside
    `prompt_tokens`, those that were asked.
    """
    whole, asked = doc.get("cut_from"), doc.get("prompt_tokens")
    if isinstance(whole, int) and isinstance(asked, int) and asked < whole:
        return whole, asked
    return None
