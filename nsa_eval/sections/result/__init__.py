"""The outcome: one sentence, one table with a row per task, and how the numbers were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nsa_eval._words import counted
from nsa_eval.comparison import TOO_FEW, VERDICTS, Comparison, Row, verdict_words
from nsa_eval.material import Material, metric_label
from nsa_eval.sections import Section
from nsa_reports import ScoreRow, SectionData

_NAMED = 3
"""With more models than this (or as many candidates) a sentence that names each is a paragraph."""


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


def _headline(models: Sequence[str], comparison: Comparison | None, rows: Sequence[ScoreRow]) -> str:
    """The outcome in one sentence, short with any number of models."""
    if comparison is None:
        names = ", ".join(models) if len(models) <= _NAMED else counted(len(models), "model")
        documents = counted(sum(row.n or 0 for row in rows), "document")
        return f"{names} on {counted(len(rows), 'task')}, {documents}."
    shown = {(row.task, row.metric) for row in rows}
    compared = [row for row in comparison.rows if (row.task, metric_label(row.metric, row.filter)) in shown]
    if len(comparison.candidates) >= _NAMED:
        counts = Counter(verdict_words(row) for row in compared)
        found = [f"{counts[verdict]:,} {verdict}" for verdict in VERDICTS if counts[verdict]]
        return (
            f"{counted(len(comparison.candidates), 'model')} against {comparison.baseline} on "
            f"{counted(len(rows), 'task')}, {counted(len(compared), 'comparison')}: {', '.join(found)}."
        )
    return " ".join(
        f"{candidate} against {comparison.baseline}: "
        f"{_outcome([row for row in compared if row.candidate == candidate])}."
        for candidate in comparison.candidates
    )


def _outcome(rows: Sequence[Row]) -> str:
    """What became of one candidate: the tasks where a difference was found by name, the others counted."""
    undecided = ("not distinguishable", TOO_FEW)
    words = [(verdict_words(row), row.task) for row in rows]
    parts = [f"{verdict} on {task}" for verdict, task in words if verdict not in undecided]
    for verdict in undecided:
        count = sum(found == verdict for found, _ in words)
        if count:
            parts.append(f"{verdict} on {counted(count, 'other task' if parts else 'task')}")
    return ", ".join(parts)


SECTION = Section(title="Result", order=20, build=build)
