"""A command for each task family that offers one: `nsa-eval needle`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from nsa_eval.cli._app import app, examples
from nsa_eval.cli._errors import guarded
from nsa_eval.cli._options import (
    BatchSizeOption,
    Device,
    DryRun,
    Dtype,
    ExecutorOption,
    LimitOption,
    LooksOption,
    Measure,
    MethodOption,
    Models,
    Output,
    Overwrite,
    ProfileOption,
    Quiet,
    Set,
    SweepOption,
    Truncation,
    WithTemplate,
    engine_given,
    model_keys_given,
)
from nsa_eval.cli._starting import start
from nsa_eval.errors import UserError
from nsa_tasks import FamilyCommand, Parameter, TaskFamily, families


def _add_family_command(family: TaskFamily, command: FamilyCommand) -> None:
    """Register a task family's own command: its parameters are flags, the rest is the same for all."""
    known = {p.name: p for task in family.tasks for p in family.parameters(task)}

    def run_family(
        model: list[str],
        task: str,
        batch_size: str | None,
        device: str | None,
        dtype: str | None,
        apply_chat_template: bool,
        truncation: str | None,
        limit: float | None,
        looks: int | None,
        method: list[str] | None,
        sweep: list[str] | None,
        executor: str | None,
        output: Path | None,
        overrides: list[str] | None,
        dry_run: bool,
        measure: bool,
        profile: str | None,
        overwrite: bool,
        quiet: bool,
        **params: str | None,
    ) -> None:
        from nsa_eval.from_arguments import family_config, with_variants

        shared = model_keys_given(
            device=device, dtype=dtype, chat_template="true" if apply_chat_template else None
        )
        given: dict[str, Any] = {
            name: _parsed(known[name], text) for name, text in params.items() if text is not None
        }
        models = with_variants(
            [{"path": path} | shared for path in model], methods=method or (), sweeps=sweep or ()
        )
        data = family_config(family.name, models, task=task, **given)
        engine = engine_given(batch_size, truncation)
        if engine:
            data["engine"] = engine
        start(
            data,
            output,
            overrides,
            limit=limit,
            looks=looks,
            executor=executor,
            dry_run=dry_run,
            measure=measure,
            profile=profile,
            overwrite=overwrite,
            quiet=quiet,
        )

    flags: dict[str, tuple[Any, Any]] = {
        "model": (Models, inspect.Parameter.empty),
        **{
            name: (
                Annotated[
                    str | None,
                    typer.Option(f"--{name}", help=_sentence(known[name]), show_default=default is not None),
                ],
                default,
            )
            for name, default in command.options.items()
        },
        "task": (
            Annotated[str, typer.Option("--task", help=f"Which of its tasks: {', '.join(family.tasks)}.")],
            command.task,
        ),
        "batch_size": (BatchSizeOption, None),
        "device": (Device, None),
        "dtype": (Dtype, None),
        "apply_chat_template": (WithTemplate, False),
        "truncation": (Truncation, None),
        "limit": (LimitOption, None),
        "looks": (LooksOption, None),
        "method": (MethodOption, None),
        "sweep": (SweepOption, None),
        "executor": (ExecutorOption, None),
        "output": (Output, None),
        "overrides": (Set, None),
        "dry_run": (DryRun, False),
        "measure": (Measure, False),
        "profile": (ProfileOption, None),
        "overwrite": (Overwrite, False),
        "quiet": (Quiet, False),
    }
    # typer reads a function's signature; this one is known only now.
    run_family.__doc__ = command.summary
    run_family.__annotations__ = {name: annotation for name, (annotation, _) in flags.items()}
    run_family.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in flags.items()
        ]
    )
    app.command(family.name, epilog=examples(*command.examples))(guarded(run_family))


def _parsed(parameter: Parameter, text: str) -> object:
    try:
        value = parameter.parse(text)
        parameter.read(value)  # the config's check would call the flag a key of a task
        return value
    except ValueError as error:
        raise UserError(f"--{parameter.name}: {error}") from None


def _sentence(parameter: Parameter) -> str:
    """A parameter's line of help as the command line writes them."""
    text = parameter.help[:1].upper() + parameter.help[1:]
    return f"{text} ({parameter.unit})." if parameter.unit not in ("name", "number") else f"{text}."


for _family in families().values():
    if _family.command is not None:
        _add_family_command(_family, _family.command)
