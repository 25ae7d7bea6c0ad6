"""The package's functions: list tasks, find their families, make a task for lm-eval."""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._parameters import ParameterInfo
from nsa_tasks._suggest import closest
from nsa_tasks._yaml import group_files, load_task_yaml, task_files
from nsa_tasks.family import Params, TaskFamily
from nsa_tasks.groups import TaskGroup, group_of


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
    """Every task family by name: each folder beside this file that holds a task's YAML.

    One that holds groups alone, of others' tasks, need not be one.
    """
    names = dict.fromkeys(path.parent.name for path in task_files().values())
    groups = dict.fromkeys(path.parent.name for path in group_files().values())
    found = {name: _load(name) for name in names}
    return found | {name: _load(name) for name in groups if name not in found and _offered(name) is not None}


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


def is_own(name: str) -> bool:
    """Whether a name is that of a task or group of this package."""
    return name in task_files() or name in group_files()


def parameters_of(name: str) -> dict[str, tuple[TaskFamily, str]]:
    """The parameters of a task, or of any member of a group: each with a family and task that take it."""
    group = group_of(name)
    found: dict[str, tuple[TaskFamily, str]] = {}
    for task in (name,) if group is None else (leaf.task for leaf in group.leaves()):
        family = family_of(task)
        if family is not None:
            for parameter in family.parameters(task):
                found.setdefault(parameter.name, (family, task))
    return found


def normal(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Write given parameters of a task or group in the form that configs are compared in.

    Raises:
        TaskParameterError: An unknown parameter, or a value that cannot be used.
    """
    return _rewritten(name, given, lambda family, task, one: family.normal(task, one))


def portable(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Write local files of a task's or group's parameters by their absolute paths.

    Raises:
        TaskParameterError: An unknown parameter.
    """
    return _rewritten(name, given, lambda family, task, one: family.portable(task, one))


def _rewritten(
    name: str,
    given: Mapping[str, Any],
    rewrite: Callable[[TaskFamily, str, dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    known = parameters_of(name)
    made: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            near = closest(str(key), list(known))
            hint = f" (did you mean {near!r}?)" if near else ""
            raise TaskParameterError(
                f"{name}: unknown parameter {key!r}{hint}. It takes: {', '.join(known) or 'none'}."
            )
        made |= rewrite(*known[key], {key: value})
    return made


def list_groups() -> list[TaskInfo]:
    """List every group of this package; its parameters are those of its members."""
    infos = []
    for name in group_files():
        group = group_of(name)
        assert group is not None
        data = group.metadata
        count = len(list(group.leaves()))
        infos.append(
            TaskInfo(
                name,
                str(data.get("family", group.files[0].parent.name)),
                str(data.get("protocol") or _protocols(group)),
                f"{data.get('summary', '')} ({count} tasks)".strip(),
                (),
            )
        )
    return infos


def _protocols(group: TaskGroup) -> str:
    """Whose definitions the members of a group follow."""
    found = {
        load_task_yaml(task_files()[leaf.task], resolve=False)["metadata"]["protocol"]
        if leaf.task in task_files()
        else "lm-eval"
        for leaf in group.leaves()
    }
    return " / ".join(sorted(found))


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
    window: int | None = None,
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
        window: Tokens that the model reads and writes at most, where that isn't what its config.json says:
            for tasks that cut their prompts by it.

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
        ("window", window, None),
    ):
        if value != default:
            settings[key] = value
    metadata = {**config["metadata"], **resolved.plain(), **settings}
    return {**config, "task": alias or name, "metadata": metadata, "params": resolved}


def _offered(folder: str) -> object:
    return getattr(importlib.import_module(f"nsa_tasks.{folder}"), "FAMILY", None)


def _load(folder: str) -> TaskFamily:
    family = _offered(folder)
    if not isinstance(family, TaskFamily) or family.name != folder:
        raise TypeError(f"nsa_tasks/{folder}/__init__.py must offer FAMILY, a TaskFamily named {folder!r}")
    return family
