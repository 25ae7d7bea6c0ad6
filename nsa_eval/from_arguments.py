"""Runs without a config file, of one task family or a list of tasks: they build the same config in memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nsa_eval.errors import UserError
from nsa_settings import did_you_mean

if TYPE_CHECKING:
    from nsa_eval.outcome import RunResult

ModelLike = str | Mapping[str, Any]
"""A checkpoint's path, or a mapping with the keys of a config's model (`{"path": ..., "dtype":
"bfloat16"}`)."""


def family_config(
    family: str,
    models: ModelLike | Sequence[ModelLike],
    *,
    task: str | None = None,
    name: str | None = None,
    **params: Any,  # noqa: ANN401  (the task's own parameters)
) -> dict[str, Any]:
    """Build the config of one task of a task family.

    Args:
        family: A task family with a command of its own.
        models: One checkpoint or several; the first is the baseline of the comparison.
        task: Which of its tasks. Default: what its command runs.
        name: Name of the run. Default: the family's name and a hash of the config, so the same call finds the
            same folder.
        **params: Parameters of the task; None means its command's default.

    Returns:
        What a YAML config would hold.

    Raises:
        UserError: No such family, or one without a command.
    """
    from nsa_tasks import TaskParameterError, families

    found = families().get(family)
    if found is None or found.command is None:
        known = [listed.name for listed in families().values() if listed.command is not None]
        raise UserError(f"no task family {family!r} with a command of its own{did_you_mean(family, known)}")
    defaults = {key: value for key, value in found.command.options.items() if value is not None}
    given = defaults | {key: value for key, value in params.items() if value is not None}
    chosen = task or found.command.task
    if chosen in found.tasks:
        with contextlib.suppress(TaskParameterError):  # the config's check tells it, with its key
            given = found.normal(chosen, given)
    return named({"models": model_entries(models), "tasks": [{"task": chosen, **given}]}, family, name)


def evaluate_config(
    models: ModelLike | Sequence[ModelLike],
    tasks: str | Sequence[str | Mapping[str, Any]],
    *,
    num_fewshot: int | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    name: str | None = None,
    **keys: Any,  # noqa: ANN401  (other keys of a config)
) -> dict[str, Any]:
    """Build the config of an evaluation.

    Args:
        models: One checkpoint or several.
        tasks: Task names (comma-separated text or a list), or mappings with the keys of a config's task.
        num_fewshot: Solved examples before each question of lm-eval's tasks.
        gen_kwargs: Generation settings that replace the tasks' own.
        metadata: What tasks read from their metadata; the project's own take it as their parameters.
        name: Name of the run. Default: `eval-` and a hash of the config.
        **keys: Other keys of a config: `limit`, `seed`, `engine`, `include_path`, ...; None means the
        default.

    Returns:
        What a YAML config would hold.
    """
    from nsa_tasks import is_own

    listed = [t.strip() for t in tasks.split(",") if t.strip()] if isinstance(tasks, str) else list(tasks)
    entries = []
    for task in listed:
        entry: dict[str, Any] = {"task": task} if isinstance(task, str) else dict(task)
        if num_fewshot is not None:
            entry.setdefault("num_fewshot", num_fewshot)
        if gen_kwargs:
            entry.setdefault("gen_kwargs", dict(gen_kwargs))
        if metadata:
            own = is_own(str(entry.get("task")))
            entry = {**metadata, **entry} if own else {"metadata": dict(metadata), **entry}
        entries.append(entry)
    data = {"models": model_entries(models), "tasks": entries}
    return named(data | {key: value for key, value in keys.items() if value is not None}, "eval", name)


def model_entries(models: ModelLike | Sequence[ModelLike]) -> list[dict[str, Any]]:
    """Write models as a config does, and tell two of the same name apart (`ckpt`, `ckpt-2`)."""
    from nsa_eval.config.schema import default_model_name

    listed = [models] if isinstance(models, str | Mapping) else list(models)
    entries: list[dict[str, Any]] = []
    for model in listed:
        entry = {"path": model} if isinstance(model, str) else dict(model)
        if "name" not in entry and isinstance(entry.get("path"), str):
            base = default_model_name(entry["path"])
            taken = {other.get("name") for other in entries}
            count = 1
            while (name := base if count == 1 else f"{base}-{count}") in taken:
                count += 1
            entry = {"name": name, **entry}
        entries.append(entry)
    return entries


def with_variants(
    models: ModelLike | Sequence[ModelLike], *, methods: Iterable[str] = (), sweeps: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Add variants to those of the models that can have them, behind the checkpoint as it is.

    A method is for checkpoints with dense attention, a field for those whose config has it; of a hub id,
    whose config isn't here yet, both are taken to fit.

    Args:
        models: One checkpoint or several.
        methods: `NAME:BUDGET[,BUDGET...][,OPTION=VALUE...]`, budgets in tokens or percent of each prompt, or
            `NAME[:OPTION=VALUE...]` for a method without a budget; any number.
        sweeps: `FIELD=VALUE[,VALUE...]`, any number.

    Raises:
        UserError: A text of another form, or a variant that fits none of the models.
    """
    wanted = [("--method " + text, {"method": _method(text)}) for text in methods]
    wanted += [("--sweep " + text, {"set": _sweep(text)}) for text in sweeps]
    entries = model_entries(models)
    if not wanted:
        return entries
    entries = [{**entry, "variants": [*entry.get("variants", [{}])]} for entry in entries]
    for flag, variant in wanted:
        fitting = [entry for entry in entries if _fits(entry["path"], variant)]
        if not fitting:
            paths = ", ".join(entry["path"] for entry in entries)
            if "method" in variant:
                raise UserError(f"{flag}: the models are sparse already: {paths}")
            raise UserError(
                f"{flag}: NSA's fields act in models with NSA alone, and none of these is one: {paths}"
            )
        for entry in fitting:
            entry["variants"].append(variant)
    return entries


def _method(text: str) -> dict[str, Any]:
    """`quest:1k,2k,page=16` as a config writes it: `parse_method`'s form, with any number of budgets."""
    from nsa_models.methods import MethodError, MethodShare, method_at, split_method

    name, colon, rest = text.partition(":")
    parts = [part.strip() for part in rest.split(",")] if colon else []
    budgets = [part for part in parts if "=" not in part]
    options = [part for part in parts if "=" in part]
    single = [f"{name}:{','.join([budget, *options])}" for budget in budgets] or [text]
    listed: list[int | str] = []
    try:
        for each in single:
            chosen, budget, given = split_method(each)
            found = method_at(chosen, budget, **given)
            made = found.declared if isinstance(found, MethodShare) else found
            if budget is not None:
                listed.append(budget if made is not found else made.parameters()["budget"])
    except MethodError as error:
        raise UserError(f"--method {text}: {error}") from None
    plain = {key: _plain(value) for key, value in made.parameters().items() if key in given}
    if not listed:
        return {"name": made.name, **plain}
    return {"name": made.name, "budget": listed if len(listed) > 1 else listed[0], **plain}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _sweep(text: str) -> dict[str, Any]:
    from nsa_settings import YamlError, parse_yaml

    key, equals, values = text.partition("=")
    if not key.strip() or not equals or not values.strip():
        raise UserError(f"--sweep {text}: expected KEY=V1,V2, such as nsa_select_count=4,8")
    try:
        listed, _ = parse_yaml(f"[{values}]")
    except YamlError as error:
        raise UserError(f"--sweep {text}: the values are {error.message}") from None
    return {key.strip(): listed}


def _fits(path: str, variant: dict[str, Any]) -> bool:
    from nsa_eval.catalog import checkpoint_config

    config = checkpoint_config(path)
    if config is None:
        return True
    if "method" in variant:
        return config.get("attention") != "nsa"
    # Fields of a class's own may be left out of config.json: only ours are told apart here.
    ours = config.get("model_type") == "nsa_decoder"
    return all(
        not key.startswith("nsa_") or (ours and config.get("attention") == "nsa") for key in variant["set"]
    )


def named(data: dict[str, Any], prefix: str, name: str | None) -> dict[str, Any]:
    """Give a config made in memory its name: the one asked for, or `prefix-` and a hash of its content."""
    digest = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
    return {"name": name or f"{prefix}-{digest[:8]}", **data}


def needle(
    models: ModelLike | Sequence[ModelLike],
    *,
    task: str | None = None,
    output: str | None = None,
    name: str | None = None,
    engine: Mapping[str, Any] | None = None,
    limit: float | None = None,
    looks: int = 0,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    **params: Any,  # noqa: ANN401  (the task's own parameters)
) -> RunResult:
    """Search for needles over a grid of lengths and depths, with one model or several.

    Args:
        models: Checkpoints; the first is the baseline of the comparison.
        task: Which needle task. Default: `needle_single`.
        output: Folder of the run. Default: `runs/` and the run's name.
        name: Name of the run.
        engine: Keys of a config's `engine`.
        limit: Only so many samples, spread evenly over the grid.
        looks: Documents of each cell of which the report shows whether the chosen blocks hold the answer.
        dry_run: Only plan.
        overwrite: Replace another run's results in `output`.
        progress: Show progress. Default: yes.
        **params: The task's parameters: what `nsa-eval needle --help` lists with its defaults, and the others
            of tasks/nsa_tasks/needle/README.md.

    Returns:
        The same as `run`.

    Example:
        >>> needle(["zoo:twin-nsa-64k", "zoo:twin-full-64k"], lengths=["1k", "4k"], depths=5).report
    """
    from nsa_eval.runner import run

    data = family_config("needle", models, task=task, name=name, **params)
    if engine:
        data["engine"] = dict(engine)
    if looks:
        data["report"] = {"looks": looks}
    return run(data, output=output, limit=limit, dry_run=dry_run, overwrite=overwrite, progress=progress)


def evaluate(
    models: ModelLike | Sequence[ModelLike],
    tasks: str | Sequence[str | Mapping[str, Any]],
    *,
    output: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    **keys: Any,  # noqa: ANN401  (see evaluate_config)
) -> RunResult:
    """Evaluate checkpoints on tasks, the project's or lm-eval's.

    Args:
        models: Checkpoints.
        tasks: Task names.
        output: Folder of the run. Default: `runs/` and the run's name.
        dry_run: Only plan.
        overwrite: Replace another run's results in `output`.
        progress: Show progress. Default: yes.
        **keys: What `evaluate_config` takes: `num_fewshot`, `gen_kwargs`, `limit`, `seed`, `engine`, ...

    Returns:
        The same as `run`.
    """
    from nsa_eval.runner import run

    data = evaluate_config(models, tasks, **keys)
    return run(data, output=output, dry_run=dry_run, overwrite=overwrite, progress=progress)
