"""A whole report: headline, tables, grids, and where they come from."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from nsa_eval.compare import Comparison, labelled
from nsa_eval.results import ModelRun, Run
from nsa_eval.view._provenance import audit_notes, model_card, provenance
from nsa_eval.view._samples import side_by_side
from nsa_eval.view._scores import Figures, heatmap
from nsa_reports import AuditNote, HeatmapGroup, ReportView, ScoreRow, TaskSection


def build_view(
    runs: Sequence[str | Path | Run] | str | Path | Run,
    comparison: Comparison | None = None,
    *,
    title: str | None = None,
    refusal: Sequence[str] = (),
) -> ReportView:
    """Everything a report shows of one or several run directories.

    Args:
        runs: As `compare` takes them; their models are the columns, in this order.
        comparison: What `compare` found for the same runs; without it the page has no differences.
        title: Heading; by default the run's name.
        refusal: Why the models were not compared, a line each.

    Returns:
        A view for `nsa_reports.render`.
    """
    models = labelled([runs] if isinstance(runs, str | Path | Run) else runs)
    figures = Figures(models, comparison)
    tasks = list(dict.fromkeys(task for model in models.values() for task in model.tasks))
    rows: list[ScoreRow] = []
    heatmaps: list[HeatmapGroup] = []
    sections: list[TaskSection] = []
    for task in tasks:
        metrics = figures.metrics(task)
        if not metrics:
            continue
        # The first metric is the task's own main one; all its filters are shown, the other metrics further
        # down.
        rows += [figures.row(task, metric, name) for metric, name in metrics if metric == metrics[0][0]]
        group = heatmap(task, models, figures)
        if group is not None:
            heatmaps.append(group)
        if group is None or len(metrics) > 1:
            sections.append(
                TaskSection(
                    task=task,
                    rows=tuple(figures.row(task, metric, name) for metric, name in metrics),
                    # The samples of a grid are read by clicking its cells.
                    samples=() if group is not None else side_by_side(task, models, metrics[0]),
                    protocol=figures.protocol(task),
                    description=figures.description(task),
                )
            )
    first = next(iter(models.values()))
    return ReportView(
        title=title or str((first.run_config or {}).get("name") or first.directory.name),
        headline=_headline(models, comparison, rows),
        models=tuple(model_card(label, model) for label, model in models.items()),
        rows=tuple(rows),
        heatmaps=tuple(heatmaps),
        tasks=tuple(sections),
        audit=(*audit_notes(models), *_remarks(comparison, refusal)),
        provenance=provenance(list(models.values())),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        method=tuple(comparison.method) if comparison else figures.method,
        confidence=figures.confidence,
    )


def _headline(models: Mapping[str, ModelRun], comparison: Comparison | None, rows: Sequence[ScoreRow]) -> str:
    """The outcome in one sentence."""
    if comparison is None:
        documents = sum(row.n or 0 for row in rows)
        return f"{', '.join(models)} on {_count(len(rows), 'task')}, {documents:,} documents."
    shown = {(row.task, row.metric) for row in rows}
    sentences = []
    for candidate in comparison.candidates:
        compared = [
            row for row in comparison.rows if row.candidate == candidate and (row.task, _metric(row)) in shown
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


def _metric(row: object) -> str:
    metric, filter_name = getattr(row, "metric", ""), getattr(row, "filter", "none")
    return metric if filter_name == "none" else f"{metric}, {filter_name}"


def _remarks(comparison: Comparison | None, refusal: Sequence[str]) -> list[AuditNote]:
    notes = []
    if refusal:
        notes.append(AuditNote(title="Models not compared", count=len(refusal), details=tuple(refusal)))
    if comparison is not None and comparison.notes:
        title = "Remarks on the comparison"
        notes.append(AuditNote(title=title, count=len(comparison.notes), details=tuple(comparison.notes)))
    return notes


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
