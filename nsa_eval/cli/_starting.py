"""What every command that evaluates ends with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from nsa_eval.estimate import Estimate
    from nsa_eval.outcome import RunResult


def start(
    config: str | dict[str, Any],
    output: Path | None,
    overrides: list[str] | None,
    *,
    limit: float | None,
    looks: int | None,
    executor: str | None,
    dry_run: bool,
    measure: bool,
    profile: str | None,
    overwrite: bool,
    quiet: bool,
    unsafe_code: bool = False,
) -> None:
    """Run a config and print what came of it; in a dry run the plan, and about how long it takes."""
    from nsa_eval.cli._output import show_plan, show_result
    from nsa_eval.errors import UserError
    from nsa_eval.runner import run

    for flag, given in (("--measure", measure), ("--profile", profile is not None)):
        if given and not dry_run:
            raise UserError(f"{flag} is for estimates: add --dry-run")
    if measure and profile is not None:
        raise UserError("--measure and --profile: an estimate is from one of them; leave one out")

    flags = [f"executor.kind={executor}"] if executor else []
    flags += [f"report.looks={looks}"] if looks is not None else []
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
        show_plan(result.plan, *_estimate(result, measure=measure, profile=profile))
    else:
        show_result(result, quiet=quiet)


def _estimate(result: RunResult, *, measure: bool, profile: str | None) -> tuple[Estimate, list[str]]:
    """What is known of the plan's time, and its lines; a new measurement is kept."""
    from nsa_eval import estimate as known

    measured: dict[str, known.Measurement] = {}
    if measure:
        measured = known.measure(result.config, result.plan, say=lambda text: typer.echo(text, err=True))
        for one in measured.values():
            known.keep_profile(one.profile)
    found = known.estimate(result.plan, known.read_profiles(profile), measured=measured)
    return found, known.estimate_lines(found, workers=result.config.executor.kind)
