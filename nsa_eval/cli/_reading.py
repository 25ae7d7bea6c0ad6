"""Commands that read: compare, report, ls."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nsa_eval.cli._app import app, examples
from nsa_eval.cli._errors import guarded


class TableFormat(StrEnum):
    """How `compare` writes its table."""

    table = "table"
    md = "md"
    latex = "latex"
    csv = "csv"
    json = "json"


@app.command(
    "compare",
    epilog=examples(
        "nsa-eval compare runs/quickstart",
        "nsa-eval compare runs/a:nsa runs/b:dense --baseline dense --format md",
        "nsa-eval compare runs/a runs/b --format csv -o differences.csv",
    ),
)
@guarded
def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR|DIR:MODEL...", help="Run folders, or single models of them.", show_default=False
        ),
    ],
    format: Annotated[
        TableFormat, typer.Option("--format", help="How to write the table.")
    ] = TableFormat.table,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            help="The model to compare with. Default: the run's, else the first.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Only this metric; may be given again.", show_default=False),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Only this task; may be given again.", show_default=False),
    ] = None,
    allow: Annotated[
        str | None,
        typer.Option(
            "--allow",
            metavar="WHAT,...",
            help="Compare although this differs, on purpose: chat_template, system_instruction, truncation.",
            show_default=False,
        ),
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Coverage of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option("--resamples", help="Resamples of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the bootstrap.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file.", show_default=False)
    ] = None,
) -> None:
    """Compare models that answered the same documents: differences, intervals, tests.

    Refuses runs whose tasks, data or protocol differ, and says how they differ.
    """
    import nsa_eval
    from nsa_eval.cli._output import print_comparison
    from nsa_eval.rundir import write_atomically

    comparison = nsa_eval.compare(
        runs,
        baseline=baseline,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        metrics=metrics,
        tasks=tasks,
        allow=[part.strip() for part in (allow or "").split(",") if part.strip()],
    )
    if output is None and format is TableFormat.table:
        print_comparison(comparison)
        return
    from nsa_eval.comparison import to_table

    # In a file a table for the terminal would be empty lines and colours: write Markdown there.
    text = str(to_table(comparison, "md" if format is TableFormat.table else format.value))
    if output is None:
        typer.echo(text)
    else:
        write_atomically(output, text if text.endswith("\n") else text + "\n")
        typer.echo(output)


@app.command(
    "report",
    epilog=examples(
        "nsa-eval report runs/quickstart", "nsa-eval report runs/quickstart -o page.html --title 'Night run'"
    ),
)
@guarded
def report_command(
    run: Annotated[str, typer.Argument(metavar="DIR", help="A run folder.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The HTML file. Default: DIR/report.html.", show_default=False),
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", help="Heading of the page.", show_default=False)
    ] = None,
) -> None:
    """Write the HTML report of a run again."""
    import nsa_eval

    typer.echo(nsa_eval.render_report(run, out=output, title=title))


@app.command(
    "ls",
    epilog=examples(
        "nsa-eval ls models",
        "nsa-eval ls tasks",
        "nsa-eval ls tasks --lm-eval --match arc",
        "nsa-eval ls methods",
        "nsa-eval ls configs",
    ),
)
@guarded
def ls_command(
    kind: Annotated[
        str,
        typer.Argument(metavar="models|tasks|methods|configs", help="What to list.", show_default=False),
    ] = "",
    lm_eval: Annotated[
        bool, typer.Option("--lm-eval", help="List lm-eval's own tasks, groups and tags.")
    ] = False,
    match: Annotated[str, typer.Option("--match", help="Only names that contain this.")] = "",
) -> None:
    """List bundled checkpoints, tasks, sparse-attention methods or configs."""
    from nsa_eval import catalog
    from nsa_eval.cli._output import print_entries
    from nsa_eval.errors import UserError
    from nsa_settings import did_you_mean

    lists = {
        "models": catalog.list_models,
        "tasks": catalog.list_tasks,
        "methods": catalog.list_methods,
        "configs": catalog.list_configs,
    }
    if kind not in lists:
        near = did_you_mean(kind, lists) if kind else ""
        raise UserError(f"ls: expected models, tasks, methods or configs, got {kind or 'nothing'}{near}")
    if kind == "tasks" and lm_eval:
        typer.echo("\n".join(sorted(name for name in catalog.lm_eval_tasks() if match in name)))
        return
    print_entries([entry for entry in lists[kind]() if match in entry.name])
    if kind == "tasks":
        typer.echo("lm-eval's own tasks work too: nsa-eval ls tasks --lm-eval lists them.", err=True)
