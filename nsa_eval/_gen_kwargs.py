"""Generation settings from two sources, the task and the user: one name for aliases, the user's word wins.

lm-eval's hf merges them by key: `max_new_tokens` beside a task's `max_gen_toks`, or a temperature beside its
`do_sample: false`, then changes nothing (lm-eval's issue 2730).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

BUDGET = "max_gen_toks"
BUDGET_NAMES = (BUDGET, "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the most new tokens, in the order in which lm-eval's normalize_gen_kwargs takes them."""
LM_EVAL_BUDGET = 256
"""Tokens of a reply for which a task names no budget: lm-eval's own default."""


def contradiction(given: Mapping[str, Any]) -> str | None:
    """What one source's settings say against each other, in words; None where they agree."""
    budgets = {name: given[name] for name in BUDGET_NAMES if given.get(name) is not None}
    if len({_text(value) for value in budgets.values()}) > 1:
        said = " and ".join(f"{name}: {value}" for name, value in budgets.items())
        return f"{said} are names of one setting with different values: keep one"
    temperature = _number(given.get("temperature"))
    if temperature is None or given.get("do_sample") is None:
        return None
    drawn = bool(given["do_sample"])
    if drawn and temperature == 0:
        return "do_sample: true needs a temperature above 0, got 0: leave do_sample out for greedy replies"
    if not drawn and temperature > 0:
        return (
            f"temperature: {given['temperature']} does nothing beside do_sample: false: leave one of them out"
        )
    return None


def merged(task: Mapping[str, Any], user: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The task's settings under the user's.

    Args:
        task: What the task's YAML says.
        user: What config or command line say, without a contradiction in itself.

    Returns:
        The settings to ask with, and a sentence for each that gave way under another name or does nothing.
    """
    own, mine = _one_name(task), _one_name(user)
    settings = own | mine
    notes = []
    given_as = next((name for name in BUDGET_NAMES if user.get(name) is not None), BUDGET)
    theirs = next((name for name in BUDGET_NAMES if task.get(name) is not None), BUDGET)
    if BUDGET in own and BUDGET in mine and given_as != theirs and own[BUDGET] != mine[BUDGET]:
        notes.append(f"gen_kwargs {given_as}: {mine[BUDGET]} replaces the task's {theirs}: {own[BUDGET]}")
    if "do_sample" not in mine and (temperature := _number(mine.get("temperature"))) is not None:
        drawn = temperature > 0
        if own.get("do_sample") is not None and bool(own["do_sample"]) != drawn:
            settings["do_sample"] = drawn
            notes.append(
                f"gen_kwargs temperature: {mine['temperature']} replaces the task's do_sample: "
                f"{_text(own['do_sample'])}"
            )
    elif mine.get("do_sample") is not None and "temperature" not in mine:
        temperature = _number(own.get("temperature"))
        if temperature is not None and (temperature > 0) != bool(mine["do_sample"]):
            del settings["temperature"]
            notes.append(
                f"gen_kwargs do_sample: {_text(mine['do_sample'])} replaces the task's temperature: "
                f"{own['temperature']}"
            )
    if not is_drawn(settings):
        notes += [
            f"gen_kwargs {name}: {mine[name]} does nothing: the replies are greedy (do_sample: true draws)"
            for name in ("top_k", "top_p")
            if mine.get(name) is not None
        ]
    return settings, notes


def is_drawn(settings: Mapping[str, Any]) -> bool:
    """Whether replies are drawn, by lm-eval's rule: where do_sample isn't said, a temperature says it."""
    if settings.get("do_sample") is not None:
        return bool(settings["do_sample"])
    return (_number(settings.get("temperature")) or 0) > 0


def _one_name(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in given.items() if key not in BUDGET_NAMES}
    budget = next((given[name] for name in BUDGET_NAMES if given.get(name) is not None), None)
    return found if budget is None else found | {BUDGET: budget}


def _number(value: object) -> float | None:
    """A temperature, or None for what is none (the engine says so)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
