"""What commands print: plans, tables, results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from nsa_eval.catalog import CatalogEntry
    from nsa_eval.comparison import Comparison
    from nsa_eval.estimate import Estimate
    from nsa_eval.outcome import RunResult
    from nsa_eval.plan import Plan
    from nsa_kernels.bench import Sheet


def print_entries(entries: Sequence[CatalogEntry]) -> None:
    """A table in a terminal, tab-separated lines in a pipe."""
    if not sys.stdout.isatty():
        for entry in entries:
            typer.echo(f"{entry.name}\t{entry.kind}\t{entry.description}")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    table.add_column()
    for entry in entries:
        table.add_row(entry.name, entry.kind, entry.description)
    Console(highlight=False).print(table, markup=False)


def show_plan(plan: Plan, estimate: Estimate, lines: Sequence[str]) -> None:
    """The jobs of a dry run, with samples, tokens and time, and what the time is from."""
    from nsa_eval.estimate import time_range

    times = estimate.jobs if estimate.seconds is not None else {}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_footer=True)
    table.add_column("job", "total", no_wrap=True)
    table.add_column("model")
    table.add_column("task")
    table.add_column("samples", f"{plan.samples:,}", justify="right")
    table.add_column("tokens", _bounded(plan.tokens, at_most=bool(plan.at_most)), justify="right")
    if times:
        table.add_column("time", time_range(estimate.seconds), justify="right", no_wrap=True)
    for job in plan.jobs:
        known = ("?", "?")
        if job.samples is not None:
            known = (f"{job.samples:,}", _bounded(job.tokens or 0, at_most=bool(job.at_most)))
        time = [time_range(times[job.id].seconds)] if times else []
        table.add_row(job.id, job.model.path, job.task.label, *known, *time)
    _console().print(table)
    if not plan.complete:
        typer.echo("?: a task whose size isn't known until its data is loaded")
    for reason in plan.at_most:
        typer.echo(f"up to: {reason}")
    for line in lines:
        typer.echo(line)


def _bounded(tokens: int, *, at_most: bool) -> str:
    return f"up to {tokens:,}" if at_most else f"{tokens:,}"


def print_comparison(comparison: Comparison) -> None:
    """The comparison as a table for a terminal."""
    from nsa_eval.comparison import to_table

    _console().print(to_table(comparison))


def show_result(result: RunResult, *, quiet: bool) -> None:
    """The end of a run: the comparison or the scores, what was recorded, and where the report is."""
    if not quiet:
        if result.comparison is not None:
            print_comparison(result.comparison)
        else:
            _print_scores(result)
        for note in result.notes:
            typer.echo(note)
    typer.echo(f"report: {result.report}" if result.report else f"results: {result.output}")


def print_sheets(heading: str, sheets: Sequence[Sheet], notes: Sequence[str]) -> None:
    """A benchmark's tables."""
    console = _console()
    console.print(heading, markup=False)
    for sheet in sheets:
        table = Table(
            title=f"\n{sheet.title}", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        for index, column in enumerate(sheet.columns):
            table.add_column(column, justify="left" if index < sheet.words else "right", no_wrap=True)
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table, markup=False)
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def _print_scores(result: RunResult) -> None:
    """A table of one model's scores, or of models that can't be compared."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("model", "task", "metric"):
        table.add_column(heading, no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("samples", justify="right")
    for model in result.models:
        for score in model.scores:
            name = "  " * score.depth + score.task
            table.add_row(model.name, name, score.metric, f"{score.value:.4f}", str(score.samples))
    _console().print(table)


def _console() -> Console:
    """A console that doesn't cut cells when there is no terminal to fit them in."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=200)
