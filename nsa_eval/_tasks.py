"""The tasks of one model: built by lm-eval, with the run's settings in them."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsa_eval._gen_kwargs import merged
from nsa_eval._paths import user_path
from nsa_eval._seeds import set_seeds
from nsa_eval._task_errors import folder_error, loading_error
from nsa_eval._words import said
from nsa_eval.catalog import task_names
from nsa_eval.config import ModelSpec, RunConfig, TaskSpec, expand, generation_problems
from nsa_eval.config.marks import Effect, own_values
from nsa_eval.errors import UserError
from nsa_eval.plan import Job, limited, repeats_of, sample_of
from nsa_eval.store import AuditEvent
from nsa_tasks import TaskDataError, TaskParameterError, Truncation, family_of, task_spec

SERVED = frozenset(
    {
        *("local-completions", "local-chat-completions", "openai-completions", "openai-chat-completions"),
        *("anthropic-chat", "anthropic-chat-completions", "anthropic-completions", "gguf", "ggml"),
        *("textsynth", "litellm", "litellm-chat", "litellm-chat-completions", "sglang-generate"),
        "watsonx_llm",
    }
)
"""lm-eval's classes that ask a server: the model's name is no path of a tokenizer."""


_LONGEST_NAME = 190
"""Bytes: with `samples_` and a date it becomes the name of a file, which may have 255."""


@dataclass(slots=True, kw_only=True)
class LoadedTasks:
    """What `lm_eval.evaluate` runs, and whose tasks they are."""

    tasks: dict[str, Any] = field(default_factory=dict)
    """Every single task (lm_eval.api.task.Task) by name, members of groups included."""
    groups: dict[str, Any] = field(default_factory=dict)
    """Every group (lm_eval.api.group.Group) by name, groups of groups included."""
    specs: dict[str, TaskSpec] = field(default_factory=dict)
    """For every single task, the config's entry that asked for it."""
    truncations: dict[str, Truncation] = field(default_factory=dict)
    """What becomes of prompts that are too long, for single tasks that say so themselves."""
    samples: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Numbers of the documents that are asked, for tasks of which a limit leaves others than the first."""
    notes: list[str] = field(default_factory=list)
    """Settings that a task didn't take, or that replace its own."""

    @property
    def events(self) -> list[AuditEvent]:
        """What a reader of the scores has to know of how the tasks were asked."""
        sampled = [
            AuditEvent(
                kind="sampled",
                task=name,
                detail=f"{len(chosen)} of {len(self.tasks[name].eval_docs)} documents, spread evenly over "
                "the cells of its grid (limit)",
            )
            for name, chosen in self.samples.items()
        ]
        return sampled + [AuditEvent(kind="setting", detail=note) for note in self.notes]

    def documents(self, spec: TaskSpec) -> int:
        """How many documents an entry of the config asks, over all its tasks."""
        return sum(
            limited(len(self.tasks[name].eval_docs), owner.limit)
            for name, owner in self.specs.items()
            if owner is spec
        )

    def contexts(self) -> dict[str, str]:
        """Of each single task, what its entry in the config says that can change a response to a request."""
        found = {}
        for name, spec in self.specs.items():
            values = own_values(spec, Effect.RESPONSE) | {"truncation": self.truncations.get(name)}
            given = {key: value for key, value in values.items() if value is not None}
            if given:
                found[name] = json.dumps(given, sort_keys=True)
        return found

    @property
    def limit(self) -> int | float | None:
        """The limit of all tasks; None where they have none, or not the same."""
        limits = {spec.limit for spec in self.specs.values()}
        return limits.pop() if len(limits) == 1 else None

    def limits(self) -> dict[str, Any]:
        """The limits as arguments of `lm_eval.evaluate`.

        It knows one limit for all tasks, and takes the first documents; other choices become lists of
        document numbers.
        """
        if len({spec.limit for spec in self.specs.values()}) == 1 and not self.samples:
            return {"limit": self.limit}
        firsts = {
            name: range(limited(len(self.tasks[name].eval_docs), spec.limit))
            for name, spec in self.specs.items()
            if spec.limit is not None
        }
        return {"samples": {name: list(chosen) for name, chosen in {**firsts, **self.samples}.items()}}


def load_tasks(model: ModelSpec, jobs: Sequence[Job], config: RunConfig) -> LoadedTasks:
    """Build the tasks of a model's jobs, as `simple_evaluate` would.

    Raises:
        UserError: Data that can't be had, a setting that a task refuses, a task asked for twice.
        TaskParameterError: A parameter of one of our tasks.
    """
    manager = _task_manager({job.task.task for job in jobs if job.params is None}, config.include_path)
    loaded, kept = LoadedTasks(), {}
    for job in jobs:
        spec = job.task
        # A task that draws its documents as it is loaded draws the same ones in every process and company.
        set_seeds(*config.seed[:3])
        found = _load(manager, job, model, config)
        for name, task in found["tasks"].items():
            if name in loaded.specs:
                raise UserError(
                    f"task {name} is asked for twice (by {loaded.specs[name].label} and {spec.label}): "
                    "keep one"
                )
            if len(os.fsencode(name)) > _LONGEST_NAME:
                raise UserError(
                    f"task {name[:40]}...: a name of {len(name)} characters, too many for a file's"
                )
            _check_code(task, spec.label, config)
            # Of a group of lm-eval's each member says the same.
            loaded.notes += [note for note in _configure(task, job, config) if note not in loaded.notes]
            loaded.tasks[name], loaded.specs[name] = task, spec
            if (chosen := sample_of(spec, job.params, len(task.eval_docs))) is not None:
                loaded.samples[name] = chosen
            if (policy := _truncation(spec)) is not None:
                loaded.truncations[name] = policy
        loaded.groups |= found.get("groups", {})
        kept[spec.label] = found
    loaded.groups = _groups(config, kept) | loaded.groups
    return loaded


def _check_code(task: Any, label: str, config: RunConfig) -> None:  # noqa: ANN401  (Task)
    """Ask first, as lm-eval does, and before weights are loaded."""
    if getattr(task, "UNSAFE_CODE", False) and not config.confirm_run_unsafe_code:
        raise UserError(
            f"task {label} runs code that the model writes, with your rights and without walls: run it where "
            "that can do no harm, with --confirm_run_unsafe_code (or confirm_run_unsafe_code: true in the "
            "config)"
        )


def _groups(config: RunConfig, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The run's own groups as lm-eval's objects, which it aggregates; outer ones first, as it lists them.

    Args:
        config: The run's config.
        found: What was loaded of each job, by its label.
    """
    from lm_eval.api.group import Group

    made: dict[str, Any] = {}
    for listed in expand(config.tasks).groups:
        known = listed.group
        group = Group.from_config(
            {
                "group": listed.label,
                "group_alias": known.alias,
                "aggregate_metric_list": [dict(entry) for entry in known.aggregates] or None,
                "metadata": dict(known.metadata),
            }
        )
        for child in listed.children:
            for item in [made[child]] if child in made else _tops(found[child]):
                group.add(item)
        made[listed.label] = group
    return dict(reversed(made.items()))


def _tops(found: Mapping[str, Any]) -> list[Any]:
    """The groups and tasks that nothing else of what was loaded holds."""
    groups: list[Any] = list(found.get("groups", {}).values())
    inside = {id(inner) for group in groups for inner in (*group.get_all_groups(), *group.get_all_tasks())}
    return [one for one in (*groups, *found["tasks"].values()) if id(one) not in inside]


def _load(manager: Any, job: Job, model: ModelSpec, config: RunConfig) -> dict[str, Any]:  # noqa: ANN401
    spec = job.task
    try:
        wanted: Any = spec.task
        if job.params is not None:
            wanted = task_spec(
                spec.task,
                job.params,
                tokenizer=tokenizer_of(model, spec.label),
                apply_chat_template=bool(model.chat_template),
                alias=spec.alias,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                add_bos_token=config.engine.add_bos_token,
                template_date=model.template_date,
                window=_window(model),
            )
            wanted |= job.settings
        else:
            manager = _with_metadata(manager, model, spec)
            if job.settings:
                entry, factory = manager.task_index[spec.task], manager._factory
                built = factory.build(entry, overrides=dict(job.settings), registry=manager.task_index)
                return dict(manager.load(built if isinstance(built, list) else [built]))
        return dict(manager.load([wanted]))
    except (UserError, TaskParameterError):
        raise
    except TaskDataError as error:
        raise UserError(f"task {spec.label}: {error}") from error
    except Exception as error:
        if isinstance(error, ValueError) and job.params is not None:  # our tasks' way to refuse a setting
            raise UserError(f"task {spec.label}: {said(error)}") from error
        folders = [user_path(folder) for folder in config.include_path]
        raise loading_error(spec.label, spec.task, error, folders) from error


def tokenizer_of(model: ModelSpec, task: str) -> str:
    """The folder or hub id of the tokenizer that counts a task's lengths.

    Raises:
        UserError: The model is a server's, and names no tokenizer.
    """
    import nsa_models

    if model.lm is None:
        return nsa_models.resolve(model.path)
    named = model.lm_args.get("tokenizer")
    if isinstance(named, str):
        return nsa_models.resolve(named)
    if model.lm in SERVED:
        raise UserError(
            f"task {task}: its lengths are counted in the model's own tokens, and {model.name} ({model.lm}) "
            "names no tokenizer: add lm_args: {tokenizer: PATH} with a folder or hub id"
        )
    return nsa_models.resolve(model.path)


def _window(model: ModelSpec) -> int | None:
    """The longest request that the config gives a model; None leaves it to the checkpoint's own config."""
    given = (model.max_length, model.lm_args.get("max_length"), model.lm_args.get("max_model_len"))
    return next((value for value in given if isinstance(value, int) and not isinstance(value, bool)), None)


def _task_manager(names: set[str], include_path: Sequence[str]) -> Any:  # noqa: ANN401  (TaskManager)
    """lm-eval's own, without its 7 seconds of indexing where no task of its own is asked for."""
    from lm_eval.tasks import TaskManager

    folders = [str(user_path(folder)) for folder in include_path]
    # Our own tasks come as complete dicts and need no index at all.
    needed = not names <= task_names(folders)
    if needed and not folders:
        return _default_task_manager()
    try:
        return TaskManager(include_defaults=needed, include_path=folders or None)
    except Exception as error:
        raise folder_error(error, map(Path, folders)) from error


@functools.cache
def _default_task_manager() -> Any:  # noqa: ANN401  (TaskManager)
    """The installed tasks don't change: one index serves all models of a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _with_metadata(manager: Any, model: ModelSpec, spec: TaskSpec) -> Any:  # noqa: ANN401  (TaskManager)
    """lm-eval hands a model's arguments and `--metadata` to every task: RULER's size their texts by them."""
    from lm_eval.tasks._factory import TaskFactory

    known: dict[str, Any] = {"pretrained": model.path}
    with contextlib.suppress(UserError):  # a server's, without one: a task that needs it says so
        known["tokenizer"] = tokenizer_of(model, spec.label)
    # The manager's own way takes them as it indexes 14,000 files: the index is the same for all models.
    own = copy.copy(manager)
    own.metadata = known | (spec.metadata or {})
    own._factory = TaskFactory(meta=own.metadata)
    return own


def _truncation(spec: TaskSpec) -> Truncation | None:
    """The task's own policy: what the config says, else what its family's protocol says."""
    family = family_of(spec.task)
    return spec.truncation or (family.truncation if family is not None else None)


def _configure(task: Any, job: Job, config: RunConfig) -> list[str]:  # noqa: ANN401  (Task)
    """Give a task its few-shot count and seed, generation settings, repeats and truncation policy.

    The first two by `simple_evaluate`'s rules; generation settings by them too with `parity: lm-eval`.

    Returns:
        What was asked and doesn't apply, one sentence each.
    """
    spec = job.task
    notes = []
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=spec.num_fewshot or 0)
    elif spec.num_fewshot is not None:
        if task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=spec.num_fewshot)
        elif spec.num_fewshot:  # a task that says 0 takes none: its prompt has no place for examples
            notes.append(
                f"{spec.label}: num_fewshot {spec.num_fewshot} doesn't apply: the task fixes it at 0"
            )
    task.set_fewshot_seed(seed=config.seed[3])
    for key, text in generation_problems(task.get_config("generation_kwargs") or {}):
        raise UserError(f"task {spec.label}: its generation_kwargs.{key}: {text}")
    if spec.gen_kwargs:
        notes += _set_gen_kwargs(task, spec, spec.gen_kwargs, parity=config.engine.parity is not None)
    repeats = repeats_of(spec, job.params)
    if repeats is not None:
        notes += _set_repeats(task, spec, repeats)
    if spec.truncation is not None:
        # In the metadata it reaches the results, where a comparison looks for what was asked differently.
        metadata = {**(task.get_config("metadata") or {}), "truncation": spec.truncation}
        task.set_config(key="metadata", value=metadata)
    return notes


def _set_gen_kwargs(task: Any, spec: TaskSpec, given: dict[str, Any], *, parity: bool) -> list[str]:  # noqa: ANN401
    """Put the user's generation settings over the task's own."""
    if task.get_config("output_type") != "generate_until":
        return [f"{spec.label}: gen_kwargs don't apply: the task asks for no replies"]
    own = task.get_config("generation_kwargs") or {}
    settings, notes = (dict(own) | given, []) if parity else merged(own, given)
    task.set_config(key="generation_kwargs", value=settings)
    return [f"{spec.label}: {note}" for note in notes]


def _set_repeats(task: Any, spec: TaskSpec, repeats: int) -> list[str]:  # noqa: ANN401  (Task)
    """Ask each document several times, and say so where that can't change the score."""
    if repeats > 1 and task.get_config("output_type") != "generate_until":
        return [f"{spec.label}: repeats {repeats} doesn't apply: the task asks for no replies"]
    task.set_config(key="repeats", value=repeats)
    every = getattr(task, "scores_every_reply", False) or task.get_config("filter_list") is not None
    if repeats > 1 and not every:
        return [f"{spec.label}: the task scores the first of {repeats} replies alone; all are in its samples"]
    return []
