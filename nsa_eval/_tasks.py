"""The tasks of one model: built by lm-eval, with the run's settings in them."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsa_eval.catalog import task_names
from nsa_eval.config import ModelSpec, RunConfig, TaskSpec
from nsa_eval.config._marks import Effect, own_values
from nsa_eval.errors import UserError
from nsa_eval.plan import Job, limited, own_tasks

_NOT_FOUND = {
    "ConnectError",
    "DatasetNotFoundError",
    "HfHubHTTPError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
}
"""Names of what the hub's libraries raise when data can't be had; importing them all would take seconds."""


@dataclass(slots=True, kw_only=True)
class LoadedTasks:
    """What `lm_eval.evaluate` runs, and whose tasks they are."""

    tasks: dict[str, Any] = field(default_factory=dict)
    """Every single task (lm_eval.api.task.Task) by name, members of groups included."""
    groups: dict[str, Any] = field(default_factory=dict)
    """Every group (lm_eval.api.group.Group) by name, groups of groups included."""
    specs: dict[str, TaskSpec] = field(default_factory=dict)
    """For every single task, the config's entry that asked for it."""
    notes: list[str] = field(default_factory=list)
    """Settings that a task didn't take."""

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
            values = own_values(spec, Effect.RESPONSE)
            given = {key: value for key, value in values.items() if value is not None}
            if given:
                found[name] = json.dumps(given, sort_keys=True)
        return found

    def limits(self) -> dict[str, Any]:
        """The limits as arguments of `lm_eval.evaluate`.

        It knows one limit for all tasks; limits that differ become lists of document numbers.
        """
        limits = {spec.limit for spec in self.specs.values()}
        if len(limits) == 1:
            return {"limit": limits.pop()}
        return {
            "samples": {
                name: list(range(limited(len(self.tasks[name].eval_docs), spec.limit)))
                for name, spec in self.specs.items()
                if spec.limit is not None
            }
        }


def load_tasks(model: ModelSpec, jobs: Sequence[Job], config: RunConfig) -> LoadedTasks:
    """Build the tasks of a model's jobs, as `simple_evaluate` would.

    Raises:
        UserError: Data that can't be had, a setting that a task refuses, a task asked for twice.
        TaskParameterError: A parameter of one of our tasks.
    """
    own = own_tasks()
    manager = _task_manager({job.task.task for job in jobs} - own, config.include_path)
    loaded = LoadedTasks()
    for job in jobs:
        spec = job.task
        found = _load(manager, spec, model, config, own=spec.task in own)
        for name, task in found["tasks"].items():
            if name in loaded.specs:
                raise UserError(
                    f"task {name} is asked for twice (by {loaded.specs[name].label} and {spec.label}): "
                    "keep one"
                )
            loaded.notes += _configure(task, spec, fewshot_seed=config.seed[3])
            loaded.tasks[name], loaded.specs[name] = task, spec
        loaded.groups |= found.get("groups", {})
    return loaded


def _load(manager: Any, spec: TaskSpec, model: ModelSpec, config: RunConfig, *, own: bool) -> dict[str, Any]:  # noqa: ANN401
    import nsa_models
    import nsa_tasks

    try:
        wanted: Any = spec.task
        if own:
            wanted = nsa_tasks.task_spec(
                spec.task,
                spec.params,
                tokenizer=nsa_models.resolve(model.path),
                apply_chat_template=bool(model.chat_template),
                alias=spec.alias,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                add_bos_token=config.engine.add_bos_token,
            )
        return dict(manager.load([wanted]))
    except (UserError, nsa_tasks.TaskParameterError):
        raise
    except Exception as error:
        raise _task_error(spec, error) from error


def _task_manager(names: set[str], include_path: Sequence[str]) -> Any:  # noqa: ANN401  (TaskManager)
    """lm-eval's own, without its 7 seconds of indexing where no task of its own is asked for."""
    from lm_eval.tasks import TaskManager

    folders = [str(Path(folder).expanduser()) for folder in include_path]
    if names <= task_names(folders):  # our own tasks come as complete dicts and need no index at all
        return TaskManager(include_defaults=False, include_path=folders or None)
    return TaskManager(include_path=folders) if folders else _default_task_manager()


@functools.cache
def _default_task_manager() -> Any:  # noqa: ANN401  (TaskManager)
    """The installed tasks don't change: one index serves all models of a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _configure(task: Any, spec: TaskSpec, *, fewshot_seed: int | None) -> list[str]:  # noqa: ANN401  (Task)
    """Give a task its few-shot count, few-shot seed and generation settings, by `simple_evaluate`'s rules."""
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
    task.set_fewshot_seed(seed=fewshot_seed)
    if spec.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(spec.gen_kwargs), update=True)
    return notes


def _task_error(spec: TaskSpec, error: Exception) -> Exception:
    """A data set that can't be had is the user's to mend; anything else is ours."""
    name = type(error).__name__
    offline = isinstance(error, ConnectionError | FileNotFoundError | TimeoutError) or name in _NOT_FOUND
    text = " ".join(str(error).split())[:300]
    if offline or isinstance(error, ModuleNotFoundError):
        return UserError(f"task {spec.label} can't be loaded ({name}: {text})")
    if isinstance(error, ValueError):  # lm-eval's and our tasks' way to refuse a setting
        return UserError(f"task {spec.label}: {text}")
    return error
