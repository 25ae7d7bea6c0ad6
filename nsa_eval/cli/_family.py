"""A command for each task family that offers one: `nsa-eval needle`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from nsa_eval.cli._app import app, examples
from nsa_eval.cli._errors import guarded
from nsa_eval.cli._given import engine_given, model_keys_given
from nsa_eval.cli._options import (
    BatchSizeOption,
    Device,
    Dtype,
    MethodOption,
    Models,
    SweepOption,
    Truncation,
    WithTemplate,
)
from nsa_eval.cli._starting import RunFlags, start, takes_run_flags
from nsa_eval.errors import UserError
from nsa_tasks import FamilyCommand, Parameter, TaskFamily, families


def _add_family_command(family: TaskFamily, command: FamilyCommand) -> None:
    """Register a task family's own command: its parameters are flags, the rest is the same for all."""
    known = {p.name: p for task in family.tasks for p in family.parameters(task)}
    # Tasks of families with a command run no code that models write.
    evaluate = takes_run_flags(_evaluation(family, command, known), without={"confirm_run_unsafe_code"})
    app.command(family.name, epilog=examples(*command.examples))(guarded(evaluate))


def _evaluation(
    family: TaskFamily, command: FamilyCommand, known: Mapping[str, Parameter]
) -> Callable[..., None]:
    """The command's function, with the flags that the family and all such commands have."""

    def run_family(
        *,
        model: list[str],
        task: str,
        batch_size: str | None,
        device: str | None,
        dtype: str | None,
        apply_chat_template: bool,
        truncation: str | None,
        method: list[str] | None,
        sweep: list[str] | None,
        flags: RunFlags,
        **params: str | None,
    ) -> None:
        from nsa_eval.from_arguments import family_config, with_variants

        shared = model_keys_given(
            device=device, dtype=dtype, chat_template="true" if apply_chat_template else None
        )
        models = with_variants(
            [{"path": path} | shared for path in model], methods=method or (), sweeps=sweep or ()
        )
        given: dict[str, Any] = {
            name: _parsed(known[name], text) for name, text in params.items() if text is not None
        }
        data = family_config(family.name, models, task=task, **given)
        engine = engine_given(batch_size, truncation)
        if engine:
            data["engine"] = engine
        start(data, flags)

    # typer reads a function's signature; this one is known only now.
    run_family.__doc__ = command.summary
    run_family.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in _own_flags(family, command, known).items()
        ]
    )
    return run_family


def _own_flags(
    family: TaskFamily, command: FamilyCommand, known: Mapping[str, Parameter]
) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each flag that isn't one of every run, in the order of --help."""
    of_family = {
        name: (
            Annotated[
                str | None,
                typer.Option(f"--{name}", help=_sentence(known[name]), show_default=default is not None),
            ],
            default,
        )
        for name, default in command.options.items()
    }
    task = Annotated[str, typer.Option("--task", help=f"The task, one of {', '.join(family.tasks)}.")]
    return {
        "model": (Models, inspect.Parameter.empty),
        **of_family,
        "task": (task, command.task),
        "batch_size": (BatchSizeOption, None),
        "device": (Device, None),
        "dtype": (Dtype, None),
        "apply_chat_template": (WithTemplate, False),
        "truncation": (Truncation, None),
        "method": (MethodOption, None),
        "sweep": (SweepOption, None),
    }


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
