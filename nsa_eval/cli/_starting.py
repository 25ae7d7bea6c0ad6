"""What every command that evaluates ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def start(
    config: str | dict[str, Any],
    output: Path | None,
    overrides: list[str] | None,
    *,
    limit: float | None,
    executor: str | None,
    dry_run: bool,
    overwrite: bool,
    quiet: bool,
    unsafe_code: bool = False,
) -> None:
    """Run a config and print what came of it."""
    from nsa_eval.cli._output import show_plan, show_result
    from nsa_eval.runner import run

    flags = [f"executor.kind={executor}"] if executor else []
    flags += ["confirm_run_unsafe_code=true"] if unsafe_code else []
    result = run(
        config,
        output=output,
        overrides=[*flags, *(overrides or ())],
        limit=limit,
        dry_run=dry_run,
        overwrite=overwrite,
        progress=False if quiet else None,
    )
    if dry_run:
        show_plan(result.plan)
    else:
        show_result(result, quiet=quiet)
