"""What the answers took: seconds, tokens, memory and bytes of the cache, a row per task and model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from nsa_eval._words import bytes_text, seconds_text
from nsa_eval.material import (
    CostFigures,
    Material,
    conditions_in_words,
    cost_figures,
)
from nsa_eval.sections import Section
from nsa_reports import SectionData

_FEW = 6
"""With more models than this a setting that they share isn't repeated for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """One task on one model, in words; empty where there is no such figure."""

    task: str
    model: str
    prefill: str
    """In all."""
    prompt: str
    """Prefill of a response, shared parts shared out."""
    decode: str
    """Of a token."""
    pace: str
    """Tokens of replies a second of decode, over all rows of a batch."""
    memory: str
    """Peak above the weights."""
    reads: str
    """Bytes of keys and values that a decoded token attends to, on average."""
    tokens: str
    """Cached tokens that a decoded token attends to, a layer and head, on average."""
    kept: str
    """Bytes of keys and values of the row that held most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """On what one model was measured, in words."""

    model: str
    device: str
    how: str
    weights: str
    warm_up: str
    """What was paid once, over all tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs(SectionData):
    """What the section shows."""

    rows: tuple[CostRow, ...]
    settings: tuple[Setting, ...]
    memory: bool
    """Whether any model ran on a device whose memory was measured."""

    @property
    def devices(self) -> tuple[str, ...]:
        """All that were measured on."""
        return tuple(dict.fromkeys(setting.device for setting in self.settings))

    @property
    def together(self) -> Setting | None:
        """The setting that many models share, to be said once; None for a few, or where they differ."""
        alike = {(one.device, one.how, one.weights) for one in self.settings}
        return self.settings[0] if len(alike) == 1 and len(self.settings) > _FEW else None

    @property
    def by_task(self) -> tuple[tuple[str, tuple[CostRow, ...]], ...]:
        """The rows of each task."""
        return tuple((task, tuple(rows)) for task, rows in groupby(self.rows, lambda row: row.task))


def build(material: Material) -> Costs | None:
    """A row for each task of each model; None where no run recorded costs."""
    rows = [
        _row(task, label, cost_figures(cost, model.conditions))
        for task in material.tasks
        for label, model in material.models.items()
        if (cost := model.costs.get(task)) is not None
    ]
    settings = [
        Setting(
            model=label,
            device=model.conditions.device_name,
            how=conditions_in_words(model.conditions),
            weights=bytes_text(model.conditions.weights_bytes),
            warm_up=seconds_text(sum(cost.warm_up_seconds for cost in model.costs.values())),
        )
        for label, model in material.models.items()
        if model.conditions is not None and model.costs
    ]
    if not rows:
        return None
    return Costs(rows=tuple(rows), settings=tuple(settings), memory=any(row.memory for row in rows))


def _row(task: str, label: str, figures: CostFigures) -> CostRow:
    cost, steps = figures.total, figures.total.decode_steps
    return CostRow(
        task=task,
        model=label,
        prefill=seconds_text(cost.prefill_seconds),
        prompt=seconds_text(figures.prefill) if figures.prefill is not None else "",
        decode=f"{figures.decode:.3g} ms" if figures.decode is not None else "",
        pace=f"{figures.pace:,.0f}" if figures.pace is not None else "",
        memory=bytes_text(figures.above_weights) if figures.above_weights is not None else "",
        reads=bytes_text(figures.read_bytes) if figures.read_bytes is not None else "",
        tokens=f"{cost.kv_read / steps:,.0f}" if steps and cost.kv_read is not None else "",
        kept=bytes_text(figures.kept_bytes) if figures.kept_bytes is not None else "",
    )


SECTION = Section(title="Costs", order=70, build=build)
