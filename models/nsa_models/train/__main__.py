"""Command line of the trainer."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nsa_models.train._commands import add_changes, ended
from nsa_models.train.corpus import load_corpus
from nsa_models.train.loop import train
from nsa_models.train.measure import measure
from nsa_models.train.reading import load_recipe


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m nsa_models.train",
        description="Train a recipe. For several GPUs: torchrun --standalone --nproc-per-node N -m "
        "nsa_models.train RECIPE.yaml",
    )
    parser.add_argument("recipe", type=Path, help="recipe in YAML, see models/nsa_models/recipes/")
    add_changes(parser, "the recipe", "text.folder=books")
    parser.add_argument(
        "--minutes",
        type=float,
        help="time after which the state is saved and the run ends, its start included",
    )
    parser.add_argument("--prepare", action="store_true", help="make the tokenised text alone")
    parser.add_argument(
        "--measure",
        type=float,
        metavar="SECONDS",
        help="train nothing: print the tokens a second at each length, measured in so many seconds",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe; 0 when it is done, 3 when stopped with its state saved, 2 for a user's mistake.

    Under `torchrun` a stop is 0 too, as it takes any other code for a crash.
    """
    args = command_line().parse_args(argv)
    leads = os.environ.get("RANK", "0") == "0"

    def run() -> None:
        recipe = load_recipe(args.recipe, args.changes)
        if args.prepare:
            corpus = load_corpus(recipe.text)
            print(
                f"{len(corpus.train):,} tokens for training and {len(corpus.held_out):,} held out "
                f"in {recipe.text.cache}"
            )
        elif args.measure is not None:
            measure(recipe, seconds=args.measure)
        else:
            folder = train(recipe, minutes=args.minutes)
            if leads:
                print(f"model in {folder}")

    return ended(run, stopped=0 if "TORCHELASTIC_RUN_ID" in os.environ else 3, leads=leads)


if __name__ == "__main__":
    sys.exit(main())
