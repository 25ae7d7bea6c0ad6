"""The outcome: one sentence, one table with a row per task, and how the numbers were made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nsa_eval.comparison import Comparison
from nsa_eval.material import Material, metric_label
from nsa_eval.sections import Section
from nsa_reports import ScoreRow, SectionData


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(SectionData):
    """What the section shows."""

    headline: str
    """The outcome in one plain sentence."""
    rows: tuple[ScoreRow, ...] = ()
    """One per task or outermost group, under its main metric."""
    method: tuple[str, ...] = ()
    """How the numbers were made, one sentence each: intervals, test, correction, detectable effect."""


def build(material: Material) -> Result:
    """The main metric of every task and outermost group, under all its filters; members come further down."""
    figures = material.figures
    rows = []
    for task in (name for name, depth in material.outline if depth == 0):
        # The first metric is the task's own main one; the others come further down, with the task.
        metrics = figures.metrics(task)
        rows += [figures.row(task, metric, name) for metric, name in metrics if metric == metrics[0][0]]
    comparison = material.comparison
    return Result(
        headline=_headline(list(material.models), comparison, rows),
        rows=tuple(rows),
        method=tuple(comparison.method) if comparison else figures.method,
    )


def _headline(models: Iterable[str], comparison: Comparison | None, rows: Sequence[ScoreRow]) -> str:
    """The outcome in one sentence."""
    if comparison is None:
        documents = sum(row.n or 0 for row in rows)
        return f"{', '.join(models)} on {_count(len(rows), 'task')}, {documents:,} documents."
    shown = {(row.task, row.metric) for row in rows}
    sentences = []
    for candidate in comparison.candidates:
        compared = [
            row
            for row in comparison.rows
            if row.candidate == candidate and (row.task, metric_label(row.metric, row.filter)) in shown
        ]
        found = [(row.verdict, row.task) for row in compared if row.verdict != "not distinguishable"]
        parts = [f"{verdict} on {task}" for verdict, task in found]
        rest = len(compared) - len(found)
        if rest:
            parts.append(
                f"not distinguishable on {_count(rest, 'other task') if found else _count(rest, 'task')}"
            )
        sentences.append(f"{candidate} against {comparison.baseline}: {', '.join(parts)}.")
    return " ".join(sentences)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


SECTION = Section(title="Result", order=20, build=build)
