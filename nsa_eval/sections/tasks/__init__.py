"""The tasks without a grid, and all metrics of those that have several."""

from __future__ import annotations

from dataclasses import dataclass

from nsa_eval.material import Material, side_by_side
from nsa_eval.sections import Section
from nsa_eval.sections._folds import Fold, folds
from nsa_reports import ALL, Anchor, ScoreRow, SectionData, ShownSample


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """One task: its metrics as a table, and its samples. Or a group: its metrics, and its members' scores."""

    task: str
    rows: tuple[ScoreRow, ...]
    members: tuple[ScoreRow, ...] = ()
    """Of a group; folded away."""
    samples: tuple[ShownSample, ...] = ()
    title: str = ""
    """Shown instead of the task's name when set."""
    description: str = ""
    protocol: str = ""
    top: str = ""
    """The outermost group that it is a member of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One task as the template places it."""

    id: str
    task: TaskScores
    fold: Fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks(SectionData):
    """What the section shows."""

    tasks: tuple[TaskScores, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tasks with their ids."""
        placed = zip(self.tasks, folds([task.top for task in self.tasks]), strict=True)
        return tuple(Part(id=f"t{index}", task=task, fold=fold) for index, (task, fold) in enumerate(placed))

    def anchors(self) -> tuple[Anchor, ...]:
        """One per task and group that isn't folded away."""
        return tuple(
            Anchor(id=part.id, title=part.task.title or part.task.task)
            for part in self.parts
            if not part.fold.inside
        )

    def samples(self) -> dict[str, dict[str, tuple[ShownSample, ...]]]:
        """One list per task."""
        return {part.id: {ALL: part.task.samples} for part in self.parts}


def build(material: Material) -> Tasks | None:
    """Every task that no other section shows in full; a group is a table, with its members folded behind."""
    figures = material.figures
    found = []
    for task, _ in material.outline:
        if task not in material.tasks:
            _, *inside = material.members(task)
            found.append(
                TaskScores(
                    task=task,
                    rows=tuple(figures.row(task, metric, name) for metric, name in figures.metrics(task)),
                    members=tuple(figures.row(name, *figures.metrics(name)[0]) for name in inside),
                    protocol=figures.protocol(task),
                    top=material.tops.get(task, ""),
                )
            )
            continue
        metrics = figures.metrics(task)
        if figures.positions(task):
            continue
        is_grid = figures.grids(task) is not None
        if is_grid and len(metrics) == 1:
            continue
        found.append(
            TaskScores(
                task=task,
                rows=tuple(figures.row(task, metric, name) for metric, name in metrics),
                # The samples of a grid are read by clicking its cells.
                samples=() if is_grid else side_by_side(task, material.models, metrics[0]),
                protocol=figures.protocol(task),
                description=figures.description(task),
                top=material.tops.get(task, ""),
            )
        )
    return Tasks(tasks=tuple(found)) if found else None


SECTION = Section(title="Other tasks", order=40, build=build)
