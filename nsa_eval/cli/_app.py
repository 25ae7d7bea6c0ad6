"""The typer application, without its commands (see `_commands`)."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="nsa-eval",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Evaluate long-context checkpoints, sparse (NSA) and dense, and compare them.",
    epilog="Exit codes: 0 done, 1 internal error, 2 user error, 130 stopped with Ctrl-C.",
)


def examples(*lines: str) -> str:
    """The examples at the end of a command's help, a paragraph each: single line breaks are swallowed."""
    return "Examples:\n\n" + "\n\n".join(lines)


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"nsa-eval {version('nsa-eval')}")
        except PackageNotFoundError:  # run from a checkout that isn't installed
            typer.echo("nsa-eval (not installed)")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
