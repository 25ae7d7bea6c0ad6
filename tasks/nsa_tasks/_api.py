"""The package's functions: list tasks, find their families, make a task for lm-eval."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._parameters import ParameterInfo
from nsa_tasks._yaml import load_task_yaml, task_files
from nsa_tasks.family import Params, TaskFamily


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task as `nsa-eval ls tasks` shows it."""

    name: str
    family: str
    protocol: str
    """Whose definition the score follows: "official", "classic", or another tool's name."""
    description: str
    parameters: tuple[ParameterInfo, ...]


def families() -> dict[str, TaskFamily]:
    """Every task family by name: each folder beside this file that holds a task's YAML."""
    names = dict.fromkeys(path.parent.name for path in task_files().values())
    return {name: _load(name) for name in names}


def family_of(task: str) -> TaskFamily | None:
    """The family of a task, or None where the task is not of this package."""
    path = task_files().get(task)
    return None if path is None else _load(path.parent.name)


def resolve(task: str, given: Mapping[str, Any] | None = None) -> Params:
    """Resolve a task's parameters.

    Args:
        task: Task name.
        given: Its parameters; the YAML's defaults stand for those that are not given.

    Raises:
        TaskParameterError: An unknown task or parameter, or a value that cannot be used.
    """
    family = family_of(task)
    if family is None:
        raise TaskParameterError(f"unknown task {task!r}. There are: {', '.join(task_files())}.")
    return family.resolve(task, given or {})


def list_tasks() -> list[TaskInfo]:
    """List every task of this package, read from the YAMLs."""
    infos = []
    for family in families().values():
        for name in family.tasks:
            metadata = family.metadata(name)
            parameters = tuple(
                ParameterInfo(parameter.name, metadata[parameter.name], parameter.unit, parameter.help)
                for parameter in family.parameters(name)
            )
            infos.append(
                TaskInfo(name, metadata["family"], metadata["protocol"], metadata["summary"], parameters)
            )
    return infos


def task_spec(
    name: str,
    params: Params | Mapping[str, Any] | None = None,
    *,
    tokenizer: str,
    apply_chat_template: bool = False,
    alias: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    add_bos_token: bool | None = None,
    template_date: str | None = None,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Make a task with parameters for lm-eval.

    The result goes into `simple_evaluate(tasks=[...])` or `TaskManager.load([...])`; the documents are built
    there.

    Args:
        name: Task name, such as "needle_single".
        params: Its parameters: resolved ones are taken as they are, a mapping is resolved here.
        tokenizer: Folder or hub id of the model's tokenizer, which lengths are counted with.
        apply_chat_template: Count the chat template's tokens too. Say the same to `simple_evaluate`.
        alias: Another name for the task in results, for a task that is used twice. The documents do not
            depend on it.
        revision: Revision of a tokenizer on the hub.
        trust_remote_code: Allow a tokenizer with code of its own.
        add_bos_token: As the model's `add_bos_token` in lm-eval; None leaves it to the tokenizer.
        template_date: The day (2026-01-31) that a chat template prints which asks for the date.
        max_length: Tokens that the model is given at most, where that isn't what its config says.

    Returns:
        The YAML as a dict, its functions resolved, with resolved parameters in `metadata`, and under `params`
        for the task's class.

    Raises:
        TaskParameterError: An unknown task or parameter, or a value that cannot be used.

    Example:
        >>> spec = task_spec("needle_single", {"lengths": ["1k"], "depths": 5}, tokenizer="path/to/model")
        >>> manager = TaskManager(include_defaults=False)
        >>> simple_evaluate(model=lm, tasks=[spec], task_manager=manager)
    """
    resolved = params if isinstance(params, Params) else resolve(name, params)
    if resolved.task != name:
        raise TaskParameterError(f"{name}: was given the parameters of {resolved.task}.")
    if alias is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", alias):
        raise TaskParameterError(
            f"{name}: alias {alias!r}: expected letters, digits, '.', '_' and '-', "
            "since it becomes part of file names."
        )
    config = load_task_yaml(task_files()[name], resolve=True)
    settings: dict[str, Any] = {"tokenizer": str(tokenizer), "apply_chat_template": apply_chat_template}
    for key, value, default in (
        ("revision", revision, None),
        ("trust_remote_code", trust_remote_code, False),
        ("add_bos_token", add_bos_token, None),
        ("template_date", template_date, None),
        ("max_length", max_length, None),
    ):
        if value != default:
            settings[key] = value
    metadata = {**config["metadata"], **resolved.plain(), **settings}
    return {**config, "task": alias or name, "metadata": metadata, "params": resolved}


def _load(folder: str) -> TaskFamily:
    family: object = getattr(importlib.import_module(f"nsa_tasks.{folder}"), "FAMILY", None)
    if not isinstance(family, TaskFamily) or family.name != folder:
        raise TypeError(f"nsa_tasks/{folder}/__init__.py must offer FAMILY, a TaskFamily named {folder!r}")
    return family
