"""Command line of the trainer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nsa_models.train.loop import Stopped, train
from nsa_models.train.recipe import RecipeError, load_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe; 0 when it is done, 3 when stopped with its state saved, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m nsa_models.train", description=__doc__)
    parser.add_argument("recipe", type=Path, help="recipe in YAML, see models/nsa_models/recipes/")
    parser.add_argument(
        "--time-limit", type=float, help="seconds after which the state is saved and the run ends"
    )
    args = parser.parse_args(argv)
    try:
        folder = train(load_recipe(args.recipe), time_limit=args.time_limit)
    except Stopped as stopped:
        print(stopped)
        return 3
    except (RecipeError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped at once; the state saved last is kept", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it
    print(f"model in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
