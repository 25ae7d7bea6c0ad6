"""The command line: `nsa-eval run | eval | needle | compare | report | ls | validate | bench`."""

from nsa_eval.cli._main import main

__all__ = ["main"]
