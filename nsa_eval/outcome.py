"""What a run returns: the scores of each model, their comparison, the page, and what a reader should know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsa_eval._json import read_mapping
from nsa_eval.config import RunConfig
from nsa_eval.errors import UserError
from nsa_eval.plan import Plan
from nsa_eval.rundir import RunDirectory

if TYPE_CHECKING:
    from nsa_eval.comparison import Comparison

READ_ANEW = "Remove it and run again: finished responses are kept."
"""What to do about a file of a run's folder that can't be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One aggregated figure of one task, as in lm-eval's results file."""

    task: str
    """The task's name (or group's)."""
    metric: str
    """`metric,filter`, lm-eval's own key."""
    value: float
    """Mean over the samples, or whatever the metric aggregates to."""
    stderr: float | None
    """Its standard error, where lm-eval gives one."""
    samples: int | None
    """Documents behind it."""
    depth: int = 0
    """How many groups it stands in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """What a run found for one model."""

    name: str
    """The model's name."""
    results_file: Path
    """lm-eval's results_*.json."""
    results: dict[str, Any]
    """Its content."""

    @classmethod
    def read(cls, name: str, directory: RunDirectory) -> ModelResult:
        """What stands in a run's folder.

        Raises:
            UserError: The model's results file is gone, or isn't lm-eval's JSON.
        """
        file = directory.results_file(name)
        if file is None:
            raise UserError(f"{directory.path / name}: its results file is gone; run again")
        return cls(name=name, results_file=file, results=read_mapping(file, READ_ANEW))

    @property
    def scores(self) -> tuple[Score, ...]:
        """Every figure, groups before their members; of RULER, those of the lengths that were asked."""
        from nsa_eval.results import of_another_length, outlined

        found = []
        counts = self.results.get("config", {}).get("metric_documents", {})
        for task, depth in outlined(self.results):
            metrics = self.results["results"][task]
            for key, value in sorted(metrics.items(), key=self._place(task)):
                name, comma, filter_name = key.partition(",")
                if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                if of_another_length(name, value):
                    continue
                stderr = metrics.get(f"{name}_stderr,{filter_name}")
                found.append(
                    Score(
                        task=task,
                        metric=key,
                        value=float(value),
                        stderr=float(stderr) if isinstance(stderr, int | float) else None,
                        samples=counts.get(task, {}).get(key, metrics.get("sample_len")),
                        depth=depth,
                    )
                )
        return tuple(found)

    def _place(self, task: str) -> Callable[[tuple[str, Any]], int]:
        """Where a task's configuration lists a metric; lm-eval writes them as its documents come."""
        listed = self.results.get("configs", {}).get(task, {}).get("metric_list") or []
        names = [entry.get("metric") for entry in listed if isinstance(entry, dict)]

        def place(item: tuple[str, Any]) -> int:
            name = item[0].partition(",")[0]
            return names.index(name) if name in names else len(names)

        return place


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What `run` returns."""

    config: RunConfig
    """The resolved config."""
    plan: Plan
    """Its jobs."""
    output: Path | None = None
    """The run's folder; None after a dry run."""
    models: tuple[ModelResult, ...] = ()
    """One per model, in the config's order."""
    comparison: Comparison | None = None
    """The models compared with the baseline; None for one model, or where they can't be compared (see
    `notes`)."""
    report: Path | None = None
    """The HTML report."""
    audit: tuple[dict[str, Any], ...] = ()
    """Every truncated prompt, doubled BOS and defaulted length, each with its model's name."""
    notes: tuple[str, ...] = ()
    """What a reader of the scores should know, one line each."""
