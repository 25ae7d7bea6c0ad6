"""The groups of a results file: which tasks they hold, and how lm-eval made one score of theirs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nsa_eval.results._types import GroupResult, TaskResult

_CLOSE = 1e-9
"""How near a mean of the tasks' figures has to be to the group's, relative: both are sums of doubles."""


def groups_of(
    content: Mapping[str, Any], tasks: Mapping[str, TaskResult], path: Path
) -> dict[str, GroupResult]:
    """The groups with a score, whose tasks were all read from the same file; outer ones first.

    The file doesn't say whether a group counts its tasks alike or by their documents (lm-eval's
    `weight_by_size`): the one of the two means that gives its figure is the one.

    Args:
        content: A results_*.json.
        tasks: The tasks of the model, as read.
        path: The file.
    """
    listed = content.get("group_subtasks")
    if not isinstance(listed, Mapping):
        return {}
    members = {str(name): _names(inside) for name, inside in listed.items()}
    found: dict[str, GroupResult] = {}
    for name in members:
        below = list(dict.fromkeys(_tasks_below(name, members, ())))
        if name in tasks or not below:
            continue
        if any(task not in tasks or tasks[task].results_file != path for task in below):
            continue
        metrics = content["results"].get(name)
        by_size = dict(_weights(metrics, below, content["results"])) if isinstance(metrics, Mapping) else {}
        if by_size:
            directions = (content.get("higher_is_better") or {}).get(name)
            found[name] = GroupResult(
                name=name,
                children=(),
                tasks=tuple(below),
                by_size=by_size,
                higher_is_better=dict(directions) if isinstance(directions, Mapping) else {},
            )
    scored = {
        name: group.model_copy(update={"children": tuple(dict.fromkeys(_children(name, members, found, ())))})
        for name, group in found.items()
    }
    return dict(sorted(scored.items(), key=lambda item: -len(item[1].tasks)))


def outline(tasks: Sequence[str], groups: Mapping[str, GroupResult]) -> list[tuple[str, int]]:
    """Tasks and groups in the order of a table, each with its depth: a group stands before its members.

    Args:
        tasks: Single tasks, in their order.
        groups: Groups by name; those of which a task is missing are left out.
    """
    whole = {name: group for name, group in groups.items() if set(group.tasks) <= set(tasks)}
    inside = {child for group in whole.values() for child in group.children}
    place = {task: index for index, task in enumerate(tasks)}
    tops = [name for name in [*whole, *tasks] if name not in inside]
    tops.sort(key=lambda name: min(place[task] for task in (whole[name].tasks if name in whole else (name,))))
    lines: list[tuple[str, int]] = []
    seen: set[str] = set()

    def add(name: str, depth: int) -> None:
        if name in seen:  # a task of two groups stands in the first
            return
        seen.add(name)
        lines.append((name, depth))
        for child in whole[name].children if name in whole else ():
            add(child, depth + 1)

    for name in tops:
        add(name, 0)
    return lines


def outlined(content: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What a results file has figures of, each with its depth: a group before its members, in their order.

    Args:
        content: A results_*.json.
    """
    members = {str(name): _names(inside) for name, inside in (content.get("group_subtasks") or {}).items()}
    names = list(content["results"])
    inside = {child for children in members.values() for child in children}
    lines: dict[str, int] = {}

    def add(name: str, depth: int) -> None:
        if name in lines:
            return
        shown = name in names
        if shown:
            lines[name] = depth
        for child in members.get(name, ()):
            add(child, depth + shown)

    # The file has its groups last; each stands where the first of its tasks does.
    place = {name: at for at, name in enumerate(names)}
    tops = [name for name in (*members, *names) if name not in inside]

    def first(name: str) -> int:
        below = list(_tasks_below(name, members, ())) if members.get(name) else [name]
        return min((place[task] for task in below if task in place), default=len(names))

    for name in sorted(dict.fromkeys(tops), key=first):
        add(name, 0)
    for name in names:  # members of a circle
        add(name, 0)
    return list(lines.items())


def _names(inside: Any) -> tuple[str, ...]:  # noqa: ANN401 - whatever the file holds
    return tuple(str(name) for name in inside) if isinstance(inside, list | tuple) else ()


def _tasks_below(name: str, members: Mapping[str, tuple[str, ...]], above: tuple[str, ...]) -> Iterator[str]:
    """Single tasks, which older versions of lm-eval list as groups of nothing."""
    for child in members.get(name, ()):
        if not members.get(child):
            yield child
        elif child not in above:
            yield from _tasks_below(child, members, (*above, name))


def _children(
    name: str,
    members: Mapping[str, tuple[str, ...]],
    scored: Mapping[str, GroupResult],
    above: tuple[str, ...],
) -> Iterator[str]:
    """The members that have a score; in place of a group without one, its own."""
    for child in members.get(name, ()):
        if child in scored or not members.get(child):
            yield child
        elif child not in above:
            yield from _children(child, members, scored, (*above, name))


def _weights(
    metrics: Mapping[str, Any], below: Sequence[str], results: Mapping[str, Any]
) -> Iterator[tuple[str, bool]]:
    """("metric,filter", whether tasks count by their documents) of each figure that is one of the means."""
    for key, value in metrics.items():
        name, comma, _ = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        figures = [
            (float(entry[key]), int(entry.get("sample_len") or 0))
            for task in below
            if isinstance(entry := results.get(task), Mapping) and isinstance(entry.get(key), int | float)
        ]
        size = sum(count for _, count in figures)
        if size and _near(sum(figure * count for figure, count in figures) / size, value):
            yield key, True
        elif figures and _near(sum(figure for figure, _ in figures) / len(figures), value):
            yield key, False


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=1e-12)
