"""Groups of tasks: lm-eval's own group YAML, in a family's folder, with one score over its members.

    group: ruler
    task: [niah_single_1, {task: vt, metadata: {samples: 100}}, ruler_qa]
    aggregate_metric_list: [{metric: string_match, aggregation: mean, weight_by_size: false}]
    metadata: {version: 1.0, family: ruler, protocol: official, summary: ...}

A member is a task or group of this package, or one of lm-eval's. Written as a mapping it has settings of its
own, as in lm-eval: they take the place of its YAML's, key by key. For a task of this package `metadata` holds
parameters, and those that aren't named keep their defaults.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._yaml import group_files, load_task_yaml, task_files, yaml_chain

_STRUCTURE = ("group", "group_alias", "task", "aggregate_metric_list", "metadata")
"""lm-eval's keys of a group; any other is a setting of all its members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMember:
    """A single task of a group, or something of lm-eval's that it knows how to take apart."""

    task: str
    """Its name."""
    settings: Mapping[str, Any]
    """Keys of its YAML with other values, without the parameters."""
    params: Mapping[str, Any]
    """Parameters of a task of this package, with other values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGroup:
    """A group, its members read."""

    name: str
    """Its name."""
    alias: str | None
    """What lm-eval's tables call it."""
    members: "tuple[GroupMember | TaskGroup, ...]"
    """In their order."""
    aggregates: tuple[Mapping[str, Any], ...]
    """What it makes of its members' metrics: lm-eval's `aggregate_metric_list`."""
    metadata: Mapping[str, Any]
    """Version, family, protocol, summary."""
    files: tuple[Path, ...]
    """The YAML files that say all this, those of groups inside too."""

    def leaves(self) -> Iterator[GroupMember]:
        """Its members and those of groups inside, in their order."""
        for member in self.members:
            yield from member.leaves() if isinstance(member, TaskGroup) else (member,)


def group_of(name: str) -> TaskGroup | None:
    """Read a group of this package; None where the name is none.

    Raises:
        TaskParameterError: A YAML that lm-eval couldn't read as a group either.
    """
    path = group_files().get(name)
    return None if path is None else _read(name, path, {}, ())


def _read(name: str, path: Path, settings: Mapping[str, Any], above: tuple[str, ...]) -> TaskGroup:
    if name in above:
        raise TaskParameterError(f"{path}: the group {name} holds itself.")
    return _group(name, load_task_yaml(path, resolve=True), yaml_chain(path), settings, (*above, name))


def _group(
    name: str,
    content: Mapping[str, Any],
    files: tuple[Path, ...],
    settings: Mapping[str, Any],
    above: tuple[str, ...],
) -> TaskGroup:
    listed = content.get("task")
    if not isinstance(listed, list) or not listed:
        raise TaskParameterError(f"{files[0]}: task: expected a list of the group's members.")
    own = {key: value for key, value in content.items() if key not in _STRUCTURE}
    members = tuple(_member(entry, files, name, {**own, **settings}, above) for entry in listed)
    inside = (file for member in members if isinstance(member, TaskGroup) for file in member.files)
    aggregates = content.get("aggregate_metric_list") or []
    return TaskGroup(
        name=name,
        alias=content.get("group_alias"),
        members=members,
        aggregates=tuple(aggregates if isinstance(aggregates, list) else [aggregates]),
        metadata=dict(content.get("metadata") or {}),
        files=tuple(dict.fromkeys((*files, *inside))),
    )


def _member(
    entry: object, files: tuple[Path, ...], group: str, settings: Mapping[str, Any], above: tuple[str, ...]
) -> GroupMember | TaskGroup:
    given = {"task": entry} if isinstance(entry, str) else entry
    if not isinstance(given, Mapping) or not isinstance(given.get("group", given.get("task")), str):
        raise TaskParameterError(
            f"{files[0]}: a member is a name, or a mapping with `task: NAME` or `group: NAME`, got {entry!r}."
        )
    name = str(given.get("group", given.get("task")))
    merged = {**settings, **{key: value for key, value in given.items() if key not in ("task", "group")}}
    path = group_files().get(name)
    if path is not None:
        return _read(name, path, merged, above)
    if "group" in given and isinstance(given.get("task"), list):
        # lm-eval's name of a group that is written where it is used.
        return _group(f"{group}::{name}", given, files, settings, above)
    if name not in task_files():
        return GroupMember(task=name, settings=merged, params={})
    params = merged.pop("metadata", {})
    return GroupMember(task=name, settings=merged, params=params)
