"""What the trainer's command lines have in common: `--set`, and how a command ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from nsa_models.train.loop import Stopped


def add_changes(parser: argparse.ArgumentParser, whose: str, example: str) -> None:
    """Give a parser `--set KEY=VALUE`, of whose recipe, with an example of it."""
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"set a key of {whose} otherwise, like {example}; may be repeated",
    )


def ended(command: Callable[[], object], *, stopped: int = 3, leads: bool = True) -> int:
    """Run a command and give its exit code: 0, `stopped`, 2 for a user's mistake, 130 for Ctrl-C.

    Args:
        command: What to run.
        stopped: The code where it stops with its state saved.
        leads: Whether this process says why, which one of a group does.
    """
    try:
        command()
    except Stopped as told:
        if leads:
            print(told)
        return stopped
    except (OSError, ValueError) as error:
        if leads:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped at once; the state saved last is kept", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it
    return 0
