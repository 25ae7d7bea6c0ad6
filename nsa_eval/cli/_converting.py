"""The command that converts: convert."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from nsa_eval.cli._app import app, examples
from nsa_eval.cli._errors import guarded


class ForcedBlocks(StrEnum):
    """Which blocks every token selects."""

    paper = "paper"
    own = "own"


class Reading(StrEnum):
    """What reads the weights of a llama-nsa checkpoint."""

    nsa = "nsa"
    selected = "selected"
    full = "full"


@app.command(
    "convert",
    epilog=examples(
        "nsa-eval convert ./fla-nsa converted/nsa",
        "nsa-eval convert ./fla-nsa converted/nsa-2025-03 --forced-blocks own",
    ),
)
@guarded
def convert_command(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A checkpoint's folder, or a hub id.", show_default=False)
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="A folder that isn't there yet.", show_default=False)
    ],
    forced_blocks: Annotated[
        ForcedBlocks | None,
        typer.Option(
            "--forced-blocks",
            help="Blocks that every token selects: block 0, its own and the one before (paper), or its own "
            "alone (own). Default: what the trainer's code does today.",
            show_default=False,
        ),
    ] = None,
    reading: Annotated[
        Reading | None,
        typer.Option(
            "--reading",
            help="llama-nsa: all three branches (nsa), the selected one alone (selected), or full attention "
            "under its gate (full). Default: what its config.json tells.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="Branch, tag or commit of a hub repository.", show_default=False),
    ] = None,
) -> None:
    """Write another trainer's checkpoint as one of this project's.

    For NSA models of fla (model_type nsa) and Llama-named ones (llama-nsa), and MiniCPM's dense
    decoders (minicpm). Such a checkpoint can be evaluated by its path too; converted, it opens in
    transformers, and choices that its files don't tell can be made. What can't be represented
    exactly is refused with the reason.
    """
    import nsa_eval

    made = nsa_eval.convert(
        source,
        destination,
        forced_blocks=forced_blocks.value if forced_blocks else None,
        reading=reading.value if reading else None,
        revision=revision,
    )
    for note in made.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"checkpoint: {made.folder} ({made.tensors} tensors)")
