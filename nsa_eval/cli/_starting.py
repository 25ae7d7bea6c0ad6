"""What all commands that evaluate have in common: the flags of a run, and how it is started and ends."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from nsa_eval.cli._options import (
    DryRun,
    ExecutorOption,
    LimitOption,
    LooksOption,
    Measure,
    Output,
    Overwrite,
    ProfileOption,
    Quiet,
    Set,
    UnsafeCode,
)

if TYPE_CHECKING:
    from nsa_eval.estimate import Estimate
    from nsa_eval.outcome import RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFlags:
    """The flags of a run, whatever is evaluated in it: each field is one, as its annotation says."""

    output: Output = None
    overrides: Set = None
    limit: LimitOption = None
    looks: LooksOption = None
    executor: ExecutorOption = None
    confirm_run_unsafe_code: UnsafeCode = False
    dry_run: DryRun = False
    measure: Measure = False
    profile: ProfileOption = None
    overwrite: Overwrite = False
    quiet: Quiet = False


def takes_run_flags(command: Callable[..., None], *, without: Collection[str] = ()) -> Callable[..., None]:
    """Give a command the flags of a run, which it receives together as `flags`.

    typer reads a function's signature, so the flags are written into it: last, in the order of `RunFlags`.

    Args:
        command: Takes `flags: RunFlags` beside flags of its own.
        without: Fields of `RunFlags` that are no flags of this command, and keep their defaults.
    """
    hints = get_type_hints(RunFlags, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(RunFlags)
        if field.name not in without
    ]
    signature = inspect.signature(command, eval_str=True)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in signature.parameters.values()
        if parameter.name != "flags"
    ]

    @functools.wraps(command)
    def with_flags(**given: Any) -> None:  # noqa: ANN401  (each flag's own type)
        flags = RunFlags(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        command(**given, flags=flags)

    with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
    with_flags.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return with_flags


def start(config: str | dict[str, Any], flags: RunFlags) -> None:
    """Run a config and print what came of it; in a dry run the plan, and about how long it takes.

    Raises:
        UserError: Flags that don't go together, or whatever `run` raises.
    """
    from nsa_eval.cli._output import show_plan, show_result
    from nsa_eval.errors import UserError
    from nsa_eval.runner import run

    for flag, given in (("--measure", flags.measure), ("--profile", flags.profile is not None)):
        if given and not flags.dry_run:
            raise UserError(f"{flag} is for estimates: add --dry-run")
    if flags.measure and flags.profile is not None:
        raise UserError("--measure and --profile: an estimate is from one of them; leave one out")

    result = run(
        config,
        output=flags.output,
        overrides=_overrides(flags),
        limit=flags.limit,
        dry_run=flags.dry_run,
        overwrite=flags.overwrite,
        progress=False if flags.quiet else None,
    )
    if flags.dry_run:
        show_plan(result.plan, *_estimate(result, measure=flags.measure, profile=flags.profile))
    else:
        show_result(result, quiet=flags.quiet)


def _overrides(flags: RunFlags) -> list[str]:
    """The flags that stand for keys of the config, then what `--set` says, which wins."""
    keys = [f"executor.kind={flags.executor}"] if flags.executor else []
    keys += [f"report.looks={flags.looks}"] if flags.looks is not None else []
    keys += ["confirm_run_unsafe_code=true"] if flags.confirm_run_unsafe_code else []
    return [*keys, *(flags.overrides or ())]


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
