"""LongBench's way to shorten a prompt: its middle goes, counted in the model's own tokens.

It comes before any chat template, works on the prompt's own tokens, and is made of text again: what the model
reads is encoded anew, and may differ by a token or two at the seam and, with a tokenizer that can't spell
every text, elsewhere. The limit counts what the tokenizer adds to a text (BOS), and neither the reply nor the
chat template.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.window import find_window

_NONE = 1 << 30
"""A tokenizer's `model_max_length` from here on means that it names none (transformers' is 1e30)."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A prompt, shortened where it was too long."""

    text: str
    tokens: int
    """Of the whole prompt."""
    kept: int
    """Of `text`; the same where nothing was cut, and by the seam perhaps where something was."""
    acted: bool = False
    """Whether something was cut out."""


def middle_cut(tokens: RequestTokens, prompt: str, limit: int) -> Cut:
    """Cut a prompt's middle out, as LongBench's pred.py does.

    Args:
        tokens: The model's tokenizer.
        prompt: The prompt.
        limit: Most tokens; where it is odd and acts, one fewer is kept.
    """
    ids = tokens.encode(prompt).ids
    if len(ids) <= limit:
        return Cut(prompt, len(ids), len(ids))
    half = limit // 2
    decode = tokens.tokenizer.decode
    text = decode(ids[:half], skip_special_tokens=True) + decode(ids[-half:], skip_special_tokens=True)
    return Cut(text, len(ids), tokens.count(text), acted=True)


def default_limit(window: int) -> int:
    """The prompt's most tokens for a model's window.

    LongBench names 3,500, 7,500, 15,500 and 31,500 for windows of 4k, 8k, 16k and 32k: a thousand for each
    1,024, less 500. The same rule gives 63,500 and 127,500 for 64k and 128k. A window under 2k is halved: 500
    tokens would not hold its replies.
    """
    return max(window // 2, window // 1024 * 1000 - 500)


def auto_limit(task: str, metadata: Mapping[str, Any], tokens: RequestTokens) -> int:
    """The prompt's most tokens for the model that a task is for.

    Args:
        task: Task name, for the message.
        metadata: The task's, with the model's arguments among them.
        tokens: The model's tokenizer, whose own bound counts where nothing else names one.

    Raises:
        TaskParameterError: Nothing says how much the model reads.
    """
    window = find_window(task, metadata) or tokens.tokenizer.model_max_length
    if not 0 < window < _NONE:
        raise TaskParameterError(
            f"{task}: max_prompt_tokens = 'auto': neither a config.json nor the tokenizer of "
            f"{tokens.tokenizer.name_or_path!r} says how much the model reads: give max_prompt_tokens, "
            "such as 31500 for a window of 32k."
        )
    return default_limit(int(window))
