"""nsa-eval: evaluate, compare and report long-context checkpoints, sparse (NSA) and dense.

What the command line does, a notebook does with these functions:

    run(config, output=...)          models x tasks of a config, compared and reported
    needle(models, lengths=...)      a needle grid without a config
    evaluate(models, tasks=...)      a list of tasks without a config
    compare(runs, baseline=...)      models that answered the same documents
    render_report(run)               the HTML report of a run's folder
    convert(source, destination)     another trainer's NSA checkpoint as one of ours
    load_config(path)                a checked config (nsa-eval validate)

Everything is imported when it is first used, so that `nsa-eval --help` and a typing error answer at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsa_eval.comparison import compare as compare
    from nsa_eval.config import RunConfig, load_config
    from nsa_eval.conversion import convert
    from nsa_eval.errors import ConfigError, UserError
    from nsa_eval.from_arguments import evaluate, needle
    from nsa_eval.outcome import RunResult
    from nsa_eval.plan import make_plan
    from nsa_eval.report import render_report
    from nsa_eval.results import load_run
    from nsa_eval.runner import run

_HOMES = {
    "ConfigError": "errors",
    "RunConfig": "config",
    "RunResult": "outcome",
    "UserError": "errors",
    "compare": "comparison",
    "convert": "conversion",
    "evaluate": "from_arguments",
    "load_config": "config",
    "load_run": "results",
    "make_plan": "plan",
    "needle": "from_arguments",
    "render_report": "report",
    "run": "runner",
}

__all__ = [
    "ConfigError",
    "RunConfig",
    "RunResult",
    "UserError",
    "compare",
    "convert",
    "evaluate",
    "load_config",
    "load_run",
    "make_plan",
    "needle",
    "render_report",
    "run",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module 'nsa_eval' has no attribute {name!r}")
    # Looked up each time: a value kept here would outlive a test's replacement in its home.
    return getattr(importlib.import_module(f"nsa_eval.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
