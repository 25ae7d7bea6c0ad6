"""The command of a series: `python -m nsa_models.train.series SERIES.yaml`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nsa_models.train._commands import add_changes, ended
from nsa_models.train.series._file import load_series
from nsa_models.train.series._results import result_before
from nsa_models.train.series._training import train_series


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m nsa_models.train.series",
        description="Train the runs of a series. For several GPUs start it once for each, with its "
        "CUDA_VISIBLE_DEVICES: the processes share the runs.",
    )
    parser.add_argument("series", type=Path, help="series in YAML, see models/nsa_models/recipes/series/")
    parser.add_argument(
        "--only",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        metavar="NAME,...",
        help="runs to train; default: all",
    )
    add_changes(parser, "every run's recipe", "text.cache=corpus")
    parser.add_argument("--output", type=Path, help="folder for the runs in place of the series' own")
    parser.add_argument(
        "--minutes", type=float, help="time after which the state is saved and the series ends, of all runs"
    )
    parser.add_argument("--list", action="store_true", help="train nothing: print the runs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train a series; 0 when no run is left to take, 3 when stopped with its state saved, 2 for a mistake."""
    args = command_line().parse_args(argv)

    def run() -> None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("a series' runs have one GPU each: start it once for each GPU, not by torchrun")
        series = load_series(args.series, args.changes, output=args.output)
        if args.list:
            for name, recipe in series.recipes.items():
                steps = sum(stage.max_steps for stage in recipe.stages)
                done = "to do" if result_before(recipe) is None else "done"
                print(f"{name}: {steps} steps, {steps * recipe.batch_tokens / 1e6:.1f}M tokens, {done}")
            return
        held = train_series(series, only=args.only, minutes=args.minutes)
        if held:
            print(f"{', '.join(held)} in the hands of other processes")
        print(f"results in {series.file}")

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
