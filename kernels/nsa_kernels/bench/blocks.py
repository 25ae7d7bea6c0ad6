"""`python -m nsa_kernels.bench.blocks`: attention by lists beside dense attention, in one run on one GPU.

Three tables: methods that choose while a prompt is read (`prefill`), while decoding (`decode`), and kernels
by mask and length (`masks`). `tune` measures launch configurations. What can't run is a note, and what would
begin after `--seconds` is left out with one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from nsa_kernels.bench.block_measure import measure_blocks
from nsa_kernels.bench.block_result import TABLES, BlockMeasurement, BlockSettings
from nsa_kernels.bench.progress import write_file
from nsa_kernels.bench.settings import DTYPES, length_name, parse_counts, parse_lengths, parse_names
from nsa_kernels.types import BackendUnavailableError

_T = TypeVar("_T")


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the tables and writes the JSON file."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        settings = BlockSettings(**{field.name: getattr(args, field.name) for field in fields(BlockSettings)})
    except ValueError as error:
        parser.error(str(error))
    try:
        result = measure_blocks(settings, command=sys.argv, report=_Progress(args.output))
    except BackendUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{result.text()}")
    return 0


class _Progress:
    """One line a row or note on standard error, and the file up to date: a stop loses nothing."""

    def __init__(self, output: Path | None) -> None:
        self._output, self._rows, self._notes = output, 0, 0

    def __call__(self, result: BlockMeasurement) -> None:
        for row in result.rows[self._rows :]:
            ms = "-" if row.time is None else f"{row.time.median:.4f} ms"
            length = length_name(row.length) if row.length else "any length"
            print(f"{row.table} {length} {row.what} ({row.by}): {ms}", file=sys.stderr, flush=True)
        for note in result.notes[self._notes :]:
            print(f"note: {note}", file=sys.stderr, flush=True)
        self._rows, self._notes = len(result.rows), len(result.notes)
        if self._output is not None:
            write_file(self._output, result.dumps())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nsa_kernels.bench.blocks",
        description="Attention by lists of blocks beside dense attention on one GPU.",
    )
    default = BlockSettings()

    def option(name: str, text: str, **kwargs: object) -> None:
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, help=text, default=getattr(default, name), **kwargs)  # type: ignore[arg-type]

    option("lengths", "tokens of the methods' prompts and caches; k = 1024", type=_read(parse_lengths))
    option("mask_lengths", "tokens of the masks' sequences", type=_read(parse_lengths))
    option("tables", f"out of {','.join(TABLES)}", type=_read(parse_names))
    for name in ("heads", "kv_heads", "head_dim"):
        option(name, name.replace("_", " "), type=int)
    option("dtype", "of all inputs", choices=tuple(DTYPES))
    option("densities", "shares of blocks, with commas", type=_read(_shares))
    option("block", "queries and keys to a block of the masks' table", type=int)
    option("window", "tokens of the sliding mask", type=int)
    option("batches", "rows of decode", type=_read(parse_counts))
    option("seconds", "what may be spent in all", type=float)
    option("case_seconds", "about how long a contender is timed", type=float)
    option("repeats", "timed runs of each contender at most", type=int)
    option("seed", "of the random inputs", type=int)
    parser.add_argument("--output", "-o", type=Path, help="JSON file, written anew after each measurement")
    return parser


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise ValueError(f"expected shares such as 0.1,0.5, got {text!r}") from None


def _read(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Lets argparse show the message of a wrong list."""

    def read(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


if __name__ == "__main__":
    sys.exit(main())
