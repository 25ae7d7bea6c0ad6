"""What the answers took: seconds, tokens, memory and cached tokens read, a row per task and model."""

from __future__ import annotations

from dataclasses import dataclass

from nsa_eval.material import Material
from nsa_eval.sections import Section
from nsa_eval.store import Cost
from nsa_reports import SectionData


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """One task on one model, in words; empty where there is no such figure."""

    task: str
    model: str
    prefill: str
    decode: str
    pace: str
    """Tokens of replies a second of decode, over all rows of a batch."""
    memory: str
    reads: str
    """Cached tokens that a decoded token attends to, a layer and head, on average."""
    kept: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs(SectionData):
    """What the section shows."""

    rows: tuple[CostRow, ...]
    memory: bool
    """Whether any model ran on a device whose memory was measured."""


def build(material: Material) -> Costs | None:
    """A row for each task of each model; None where no run recorded costs."""
    rows = [
        _row(task, label, cost)
        for task in material.tasks
        for label, model in material.models.items()
        if (cost := model.costs.get(task)) is not None
    ]
    return Costs(rows=tuple(rows), memory=any(row.memory for row in rows)) if rows else None


def _row(task: str, label: str, cost: Cost) -> CostRow:
    steps = cost.decode_steps
    return CostRow(
        task=task,
        model=label,
        prefill=_seconds(cost.prefill_seconds),
        decode=_seconds(cost.decode_seconds) if steps else "",
        pace=f"{steps / cost.decode_seconds:,.0f}" if steps and cost.decode_seconds else "",
        memory=f"{cost.peak_bytes / 2**30:.1f} GiB" if cost.peak_bytes is not None else "",
        reads=f"{cost.kv_read / steps:,.0f}" if steps and cost.kv_read is not None else "",
        kept=f"{cost.kv_kept:,}" if cost.kv_kept is not None else "",
    )


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 100 else f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


SECTION = Section(title="Costs", order=70, build=build)
