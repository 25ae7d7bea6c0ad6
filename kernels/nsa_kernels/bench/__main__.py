"""`python -m nsa_kernels.bench`: the kernel benchmark without the rest of nsa-eval."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from nsa_kernels.bench import (
    PARTS,
    Ceilings,
    Measurement,
    Settings,
    heading,
    measure,
    parse_counts,
    parse_lengths,
    parse_names,
    sheets,
    to_text,
)
from nsa_kernels.bench.progress import Progress
from nsa_kernels.bench.settings import DTYPES, PHIS
from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.types import BackendUnavailableError

_T = TypeVar("_T")


def main() -> int:
    """Measures, prints the tables and writes the JSON file."""
    parser = _parser()
    args = parser.parse_args()
    try:
        settings = _settings(args)
        ceilings = Ceilings.given(args.peak_tflops, args.peak_tbs)
    except ValueError as error:
        parser.error(str(error))
    progress = Progress(args.output)
    try:
        result = measure(settings, ceilings=ceilings, command=sys.argv, report=progress)
    except BackendUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(result)
    return 0


def show(result: Measurement) -> None:
    """Prints a measurement as text."""
    print(f"\n{heading(result)}")
    for sheet in sheets(result):
        print(f"\n{to_text(sheet)}")
    for note in result.notes:
        print(f"note: {note}")


def _settings(args: argparse.Namespace) -> Settings:
    geometry = BlockGeometry(**{field.name: getattr(args, field.name) for field in fields(BlockGeometry)})
    given = {f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)}
    return Settings(**given, geometry=geometry)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nsa_kernels.bench", description="Dense attention and NSA side by side on one GPU."
    )
    default, geometry = Settings(), BlockGeometry()

    def option(name: str, text: str, **kwargs: object) -> None:
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, help=text, default=getattr(default, name), **kwargs)  # type: ignore[arg-type]

    option("lengths", "tokens of prefill and training, with commas; k = 1024", type=_read(parse_lengths))
    option("tokens", "of a batch of them, 64k say: as many sequences as fit; 0 = one", type=_read(_tokens))
    option("decode_lengths", "tokens in decode's caches", type=_read(parse_lengths))
    option("decode_batches", "rows of decode", type=_read(parse_counts))
    option("parts", f"out of {','.join(PARTS)}", type=_read(parse_names))
    for name in ("heads", "kv_heads", "head_dim", "value_dim"):
        option(name, name.replace("_", " "), type=int)
    option("phi", "compression", choices=PHIS)
    option("phi_hidden", "hidden units of --phi mlp", type=int)
    option("dtype", "of all inputs", choices=tuple(DTYPES))
    option("repeats", "timed runs of each contender", type=int)
    option("seconds", "about how long each is timed at most", type=float)
    option("backend", "NSA's backend")
    option("seed", "of the random inputs", type=int)
    parser.add_argument(
        "--separate-kv", dest="shared_kv", action="store_false", help="K/V of its own for the window"
    )
    for field in fields(BlockGeometry):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=int, default=getattr(geometry, field.name), help="block geometry")
    parser.add_argument("--peak-tflops", type=float, help="ceiling; with --peak-tbs instead of measuring it")
    parser.add_argument("--peak-tbs", type=float, help="ceiling; with --peak-tflops instead of measuring it")
    parser.add_argument("--output", "-o", type=Path, help="JSON file, written anew after each measurement")
    return parser


def _tokens(text: str) -> int:
    tokens = parse_lengths(text)
    if len(tokens) != 1:
        raise ValueError(f"expected one number of tokens, got {text!r}")
    return tokens[0]


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
