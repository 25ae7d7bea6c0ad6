"""Everything that a section's builder may read, worked out once and when it is first asked for."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsa_eval.comparison import Comparison, labelled
from nsa_eval.material._figures import Figures
from nsa_eval.material._settings import fields_of, settings_of, variant_of
from nsa_eval.results import GroupResult, ModelRun, Run, outline


class Material:
    """One report's runs and findings.

    Args:
        runs: As `compare` takes them; their models are the columns, in this order.
        comparison: What `compare` found for the same runs; without it the page has no differences.
        refusal: Why the models were not compared, a line each.
    """

    def __init__(
        self,
        runs: Sequence[str | Path | Run] | str | Path | Run,
        comparison: Comparison | None = None,
        refusal: Sequence[str] = (),
    ) -> None:
        """Reads the runs that aren't read yet."""
        self.models: Mapping[str, ModelRun] = labelled([runs] if isinstance(runs, str | Path | Run) else runs)
        """By label, in the page's order."""
        self.comparison = comparison
        self.refusal = tuple(refusal)

    @property
    def first(self) -> ModelRun:
        """The model whose run directory stands for all where only one can be shown."""
        return next(iter(self.models.values()))

    @property
    def run_config(self) -> dict[str, Any]:
        """run.yaml of the first run directory; empty where lm-eval wrote it."""
        return self.first.run_config or {}

    @property
    def env(self) -> dict[str, Any]:
        """env.json of the first run directory; empty where there is none."""
        return self.first.env or {}

    @functools.cached_property
    def figures(self) -> Figures:
        """Scores with intervals and differences, of every task."""
        return Figures(self.models, self.comparison)

    @functools.cached_property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have a score, in the runs' order."""
        names = dict.fromkeys(task for model in self.models.values() for task in model.tasks)
        return tuple(task for task in names if self.figures.metrics(task))

    @functools.cached_property
    def _groups(self) -> dict[str, GroupResult]:
        return {name: group for model in self.models.values() for name, group in model.groups.items()}

    @functools.cached_property
    def outline(self) -> tuple[tuple[str, int], ...]:
        """Groups and tasks that have a score, each with its depth: a group, then its members."""
        return tuple(outline(self.tasks, self._groups))

    @functools.cached_property
    def tops(self) -> dict[str, str]:
        """Of every task and group inside of a group the outermost one."""
        found: dict[str, str] = {}
        top = ""
        for name, depth in self.outline:
            if depth:
                found[name] = top
            else:
                top = name
        return found

    def members(self, group: str) -> tuple[str, ...]:
        """A group and those of its tasks and groups that have a score."""
        return (group, *(name for name in self._groups[group].children if self.figures.metrics(name)))

    def settings(self, label: str) -> dict[str, str]:
        """How a model was run, by what each setting is called; not which checkpoint it is.

        What the results say it ran with counts before what run.yaml asked for.
        """
        return settings_of(self.models[label])

    def fields(self, label: str) -> dict[str, str]:
        """The fields of a checkpoint's config, with what its variant set."""
        return fields_of(self.models[label])

    def variant(self, label: str) -> dict[str, str]:
        """What makes a model a variant of its checkpoint: config fields set, a method's parameters."""
        return variant_of(self.models[label])
