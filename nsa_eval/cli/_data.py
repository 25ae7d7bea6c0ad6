"""Commands about data sets: data check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_eval.cli._app import app, examples
from nsa_eval.cli._errors import EXIT_USER, guarded

if TYPE_CHECKING:
    from nsa_tasks import DataState

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(data_app, name="data", help="Look after the data sets that tasks read.")


@data_app.callback()
def _data() -> None:
    pass


@data_app.command(
    "check",
    epilog=examples(
        "nsa-eval data check",
        "nsa-eval data check --data-root path/to/data",
        "nsa-eval data check --family ruler",
    ),
)
@guarded
def check_command(
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root",
            help="Folder with the data sets. Default: NSA_EVAL_DATA in the environment.",
            show_default=False,
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option("--family", help="Only the data sets of this task family.", show_default=False),
    ] = None,
) -> None:
    """List every data set of every task family: its file, what is in it, and how to get it.

    Exit code 2 where a file is there and can't be used; a file that isn't there is no error.
    """
    from nsa_eval.errors import UserError
    from nsa_settings import did_you_mean
    from nsa_tasks import data_states, families

    if family is not None and family not in families():
        raise UserError(f"no task family {family!r}{did_you_mean(family, families())}")
    states = [state for state in data_states(data_root) if family in (None, state.family)]
    for state in states:
        if sys.stdout.isatty():
            _show(state)
        else:
            typer.echo("\t".join(_fields(state)))
    if not states:
        typer.echo("no task family reads data" if family is None else f"{family} reads no data")
    if any(state.state == "damaged" for state in states):
        raise typer.Exit(EXIT_USER)


def _fields(state: DataState) -> list[str]:
    """One line of a pipe: family, state, file, records, SHA-256, hub id, licence, remedy or fault."""
    source = state.source
    hub = "" if source.hub is None else f"{source.hub}@{source.revision or 'main'}"
    text = state.detail if state.state in ("damaged", "incomplete") else source.how
    return [
        *(state.family, state.state, " ".join(source.files)),
        *("" if state.records is None else str(state.records), state.sha256 or ""),
        *(hub, source.licence or "", " ".join(text.split())),
    ]


_COLOURS = {"there": "green", "missing": "yellow", "incomplete": "yellow", "damaged": "bold red"}


def _show(state: DataState) -> None:
    """A data set in a terminal: three lines, since paths and hashes are long."""
    from rich.console import Console
    from rich.text import Text

    source, console = state.source, Console(highlight=False)
    head = Text.assemble(
        (f"{state.family}  ", "bold"), " ".join(source.files), "  ", (state.state, _COLOURS[state.state])
    )
    if state.records is not None:
        head.append(f"  {state.records:,} record{'s' if state.records != 1 else ''}, SHA-256 {state.sha256}")
    console.print(head, soft_wrap=True)
    if state.state != "there":
        console.print(Text(f"    {state.detail}"), soft_wrap=True)
    terms = [f"hub: {source.hub}" if source.hub else "", source.licence or "", source.how]
    console.print(Text("    " + "; ".join(term for term in terms if term), style="dim"), soft_wrap=True)
