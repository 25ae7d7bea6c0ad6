"""What a task's answers took, as figures that can be set beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nsa_eval.results import ModelRun
from nsa_eval.store import Conditions, Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class CostFigures:
    """One task on one model; None where there is no such figure."""

    total: Cost
    prefill: float | None
    """Seconds a response."""
    decode: float | None
    """Milliseconds a token, a step's time shared among its rows."""
    pace: float | None
    """Tokens of replies a second of decode, over all rows of a batch."""
    read_bytes: float | None
    """Of keys and values that a decoded token attends to, in all layers and heads, on average."""
    kept_bytes: int | None
    """Of keys and values of the row that held most."""
    above_weights: int | None
    """Most device memory in use, less the weights."""


def cost_figures(cost: Cost, conditions: Conditions | None) -> CostFigures:
    """Work out the figures of one task's costs."""
    steps, decode = cost.decode_steps, cost.decode_seconds
    peak = cost.peak_bytes
    return CostFigures(
        total=cost,
        prefill=cost.prefill_seconds / cost.responses if cost.responses else None,
        decode=1000 * decode / steps if steps and decode else None,
        pace=steps / decode if steps and decode else None,
        read_bytes=cost.kv_read_bytes / steps if steps and cost.kv_read_bytes is not None else None,
        kept_bytes=cost.kv_kept_bytes,
        above_weights=None if peak is None or conditions is None else max(0, peak - conditions.weights_bytes),
    )


def measured_together(models: Mapping[str, ModelRun]) -> dict[str, list[str]]:
    """Labels of the models by the name of the device that their costs were measured on.

    Only those of one device may be set beside each other; models whose device isn't known are left out.
    """
    found: dict[str, list[str]] = {}
    for label, model in models.items():
        if model.conditions is not None and model.costs:
            found.setdefault(model.conditions.device_name, []).append(label)
    return found


def conditions_in_words(conditions: Conditions) -> str:
    """How a model was run where its costs were measured, without the device."""
    parts = [conditions.dtype, conditions.backend]
    parts.append(f"batch {conditions.batch_size}")
    if conditions.device == "cuda":
        parts.append("CUDA graphs" if conditions.cuda_graphs else "no CUDA graphs")
    parts.append("prefixes shared" if conditions.share_prefixes else "prefixes not shared")
    return ", ".join(parts)
