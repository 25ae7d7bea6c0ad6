"""What a config's tasks come to: single tasks, and the groups that they are members of.

An entry of a config may name a group of ours. Its members then run as if each had an entry of its own, with
the settings of the group's entry and those parameters of it that the member takes. A task of two entries runs
once if both ask the same of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsa_eval.config.schema import TaskSpec
from nsa_tasks import GroupMember, TaskGroup, family_of, group_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A single task to run, or a task, group or tag of lm-eval's."""

    spec: TaskSpec
    """As an entry of its own would be."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of its YAML that its group sets."""
    files: tuple[Path, ...] = ()
    """YAML files of the groups that it runs for."""

    @property
    def asked(self) -> str:
        """What is asked, as text to compare by."""
        return json.dumps([self.spec.model_dump(), dict(self.settings)], sort_keys=True, default=_named)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberGroup:
    """A group of a run."""

    label: str
    """Its name in tables and files."""
    group: TaskGroup
    """What it is."""
    children: tuple[str, ...]
    """Labels of its members and of groups inside, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The tasks and groups of a run."""

    tasks: tuple[Member, ...]
    """Single tasks, each once, in running order."""
    groups: tuple[MemberGroup, ...]
    """Groups; inner ones before those that hold them."""
    clashes: tuple[str, ...] = ()
    """Labels under which two different things are asked."""


def expand(entries: Iterable[TaskSpec]) -> Members:
    """Write out the groups among a config's tasks.

    Args:
        entries: The config's tasks; what is in them need not be checked yet.
    """
    tasks: dict[str, Member] = {}
    groups: dict[str, MemberGroup] = {}
    clashes: dict[str, None] = {}
    for entry in entries:
        group = group_of(entry.task)
        found: list[Member] = []
        if group is None:
            found.append(Member(spec=entry))
        else:
            for made in _groups(entry, group):
                if groups.setdefault(made.label, made).children != made.children:
                    clashes[made.label] = None
            found += _members(entry, group)
        for member in found:
            label = member.spec.label
            first = tasks.setdefault(label, member)
            if first.asked != member.asked:
                clashes[label] = None
            elif first is not member:
                files = tuple(dict.fromkeys((*first.files, *member.files)))
                tasks[label] = Member(spec=first.spec, settings=first.settings, files=files)
    return Members(tasks=tuple(tasks.values()), groups=tuple(groups.values()), clashes=tuple(clashes))


def taken(entry: TaskSpec, group: TaskGroup) -> set[str]:
    """The parameters that some member of a group takes."""
    names: set[str] = set()
    for member in group.leaves():
        if (family := family_of(member.task)) is not None:
            names.update(parameter.name for parameter in family.parameters(member.task))
    return names


def _groups(entry: TaskSpec, group: TaskGroup) -> Iterator[MemberGroup]:
    children = []
    for member in group.members:
        if isinstance(member, TaskGroup):
            yield from _groups(entry, member)
        children.append(_label(entry, member))
    yield MemberGroup(label=_label(entry, group), group=group, children=tuple(children))


def _label(entry: TaskSpec, member: TaskGroup | GroupMember) -> str:
    """The member's own name; under an alias of the group's entry one that begins with it."""
    name = member.name if isinstance(member, TaskGroup) else member.task
    if entry.alias is None:
        return name
    return entry.alias if name == entry.task else f"{entry.alias}_{name}"


def _members(entry: TaskSpec, group: TaskGroup) -> list[Member]:
    common = entry.model_dump(include=set(TaskSpec.model_fields), exclude={"task", "alias", "metadata"})
    found = []
    for leaf in group.leaves():
        family = family_of(leaf.task)
        own: dict[str, Any] = {"metadata": entry.metadata}
        if family is not None:
            names = [parameter.name for parameter in family.parameters(leaf.task)]
            given = {key: value for key, value in entry.params.items() if key in names}
            own = {**leaf.params, **given}
        alias = _label(entry, leaf) if entry.alias is not None else None
        spec = TaskSpec.model_validate({**common, **own, "task": leaf.task, "alias": alias})
        found.append(Member(spec=spec, settings=leaf.settings, files=group.files))
    return found


def _named(value: object) -> str:
    """A function by its name: its address differs from process to process."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
