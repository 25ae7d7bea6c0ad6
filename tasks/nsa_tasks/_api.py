"""The package's functions: list tasks, make a task for lm-eval, estimate its size."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from nsa_tasks._parameters import Parameter, ParameterInfo, TaskParameterError
from nsa_tasks._yaml import load_task_yaml, task_files


class Family(Protocol):
    """What the package of a task family (a folder beside this file) offers."""

    def parameters(self, task: str) -> tuple[Parameter, ...]:
        """List what a task takes."""
        ...

    def resolve(self, task: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Read given parameters into their plain form, defaults filled in; raise TaskParameterError."""
        ...

    def estimate(self, values: Mapping[str, Any]) -> tuple[int, int]:
        """Count samples and, at most, tokens."""
        ...


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task as `nsa-eval ls tasks` shows it."""

    name: str
    family: str
    protocol: str
    """Whose definition the score follows: "official", "classic", or another tool's name."""
    description: str
    parameters: tuple[ParameterInfo, ...]


def list_tasks() -> list[TaskInfo]:
    """List every task of this package, read from the YAMLs."""
    infos = []
    for name, path in task_files().items():
        metadata = load_task_yaml(path, resolve=False)["metadata"]
        parameters = tuple(
            ParameterInfo(parameter.name, metadata[parameter.name], parameter.unit, parameter.help)
            for parameter in _family(name).parameters(name)
        )
        infos.append(
            TaskInfo(name, metadata["family"], metadata["protocol"], metadata["summary"], parameters)
        )
    return infos


def task_spec(
    name: str,
    params: Mapping[str, Any] | None = None,
    *,
    tokenizer: str,
    apply_chat_template: bool = False,
    alias: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    add_bos_token: bool | None = None,
) -> dict[str, Any]:
    """Make a task with parameters for lm-eval.

    The result goes into `simple_evaluate(tasks=[...])` or `TaskManager.load([...])`; the documents are built
    there.

    Args:
        name: Task name, such as "needle_single".
        params: Its parameters; the YAML's defaults stand for those that are not given.
        tokenizer: Folder or hub id of the model's tokenizer, which lengths are counted with.
        apply_chat_template: Count the chat template's tokens too. Say the same to `simple_evaluate`.
        alias: Another name for the task in results, for a task that is used twice. The documents do not
            depend on it.
        revision: Revision of a tokenizer on the hub.
        trust_remote_code: Allow a tokenizer with code of its own.
        add_bos_token: As the model's `add_bos_token` in lm-eval; None leaves it to the tokenizer.

    Returns:
        The YAML as a dict, its functions resolved, with resolved parameters in `metadata`.

    Raises:
        TaskParameterError: An unknown task or parameter, or a value that cannot be used.

    Example:
        >>> spec = task_spec("needle_single", {"lengths": ["1k"], "depths": 5}, tokenizer="path/to/model")
        >>> manager = TaskManager(include_defaults=False)
        >>> simple_evaluate(model=lm, tasks=[spec], task_manager=manager)
    """
    values = _resolve(name, params or {})
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
    ):
        if value != default:
            settings[key] = value
    return {**config, "task": alias or name, "metadata": {**config["metadata"], **values, **settings}}


def estimate(name: str, params: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """Say how much a task asks of a model, without loading a tokenizer.

    Args:
        name: Task name.
        params: Its parameters.

    Returns:
        (samples, tokens of all requests with their replies, at most).

    Raises:
        TaskParameterError: An unknown task or parameter, or a value that cannot be used.
    """
    return _family(name).estimate(_resolve(name, params or {}))


def _family(name: str) -> Family:
    path = task_files().get(name)
    if path is None:
        raise TaskParameterError(f"unknown task {name!r}. There are: {', '.join(task_files())}.")
    return cast("Family", importlib.import_module(f"nsa_tasks.{path.parent.name}"))


def _resolve(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    family = _family(name)
    return family.resolve(name, load_task_yaml(task_files()[name], resolve=False)["metadata"], params)
