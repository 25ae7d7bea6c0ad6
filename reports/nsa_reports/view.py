"""What a report shows, as plain data: the one thing a caller has to build.

Nothing here computes a statistic or formats a number. Whoever owns the results (a run directory, a notebook,
a test) fills these dataclasses in; `nsa_reports.render` turns them into a page. Three rules hold throughout:

* per-model tuples follow the order of `ReportView.models`, with None where a model has no result;
* scores with `percent=True` are fractions (0.93 is shown as 93.0 %), and so are their differences;
* a missing cell is None or absent, never 0, and is drawn blank.

Constructors check that the pieces fit together (`ValueError`), so that a wrong view fails where it is built
and not inside a template.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One score with its own confidence interval."""

    value: float
    low: float | None = None
    """Lower end of the interval at `ReportView.confidence`; None when no interval is known."""
    high: float | None = None
    n: int | None = None
    """Documents behind the score."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Candidate minus baseline on the same documents."""

    candidate: str
    """Name of a model in `ReportView.models`."""
    baseline: str
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    """p after Holm's correction over the tasks of the report."""
    minimum_detectable: float | None = None
    """Smallest true difference this number of documents would have shown, in the unit of the score."""
    significant: bool | None = None
    """The verdict (from the adjusted p); None when no test was made."""
    test: str = ""
    """Name of the test behind p, such as "exact McNemar"."""
    n: int | None = None
    """Paired documents."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One line of a score table: a task (or a metric of it), every model, every comparison."""

    task: str
    metric: str
    scores: tuple[Estimate | None, ...]
    """One per model, in the order of `ReportView.models`."""
    comparisons: tuple[Comparison, ...] = ()
    n: int | None = None
    protocol: str = ""
    """"official", "project", or the name of the tool whose reading of the benchmark is followed."""
    percent: bool = True
    """Fractions shown as percent; False shows plain numbers (perplexity, say)."""
    higher_is_better: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a needle grid."""

    length: int
    """Context length in tokens."""
    depth: float
    """Needle depth in percent, 0 = the start of the context."""
    value: float | None
    """Mean score (fraction), or the difference of two; None draws a blank."""
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelMap:
    """The grid of one model. Cells may come in any order; absent ones are drawn blank."""

    model: str
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceMap:
    """The grid of candidate minus baseline (fractions, -1..1)."""

    candidate: str
    baseline: str
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LengthRow:
    """All depths of one length together."""

    length: int
    scores: tuple[Estimate | None, ...]
    comparisons: tuple[Comparison, ...] = ()
    n: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one model answered to one document."""

    model: str
    text: str
    score: float | None = None
    notes: tuple[str, ...] = ()
    """Remarks such as "truncated from 70,000 to 65,536 tokens"."""
    prompt_end: str | None = None
    """This model's own prompt end where it differs (chat template, tokenizer); None = the sample's."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One document with every model's reply, shown side by side."""

    id: str
    replies: tuple[Reply, ...]
    expected: tuple[str, ...] = ()
    prompt_end: str = ""
    """The last part of the prompt, as the model saw it."""
    needle: str = ""
    seed: int | None = None
    length: int | None = None
    """For needle samples: the cell's length and depth, equal to those of the grid."""
    depth: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapGroup:
    """A needle task: one grid per model, the differences, scores by length, and its samples."""

    task: str
    lengths: tuple[int, ...]
    """Columns, ascending."""
    depths: tuple[float, ...]
    """Rows in percent, ascending; 0 is drawn at the top."""
    maps: tuple[ModelMap, ...]
    differences: tuple[DifferenceMap, ...] = ()
    by_length: tuple[LengthRow, ...] = ()
    samples: tuple[Sample, ...] = ()
    title: str = ""
    """Shown instead of the task's name when set."""
    description: str = ""
    """One or two plain sentences: haystack, needle, question, metric."""
    protocol: str = ""

    def __post_init__(self) -> None:
        """Check that every cell and sample lies on the grid.

        Raises:
            ValueError: an axis repeats or is not ascending, or a cell or sample is off the grid.
        """
        for name, axis in (("lengths", self.lengths), ("depths", self.depths)):
            if not axis or list(axis) != sorted(set(axis)):
                raise ValueError(f"{self.task}: {name} must be ascending without repeats, got {list(axis)}")
        for cells in [grid.cells for grid in self.maps] + [grid.cells for grid in self.differences]:
            seen: set[tuple[int, float]] = set()
            for cell in cells:
                key = (cell.length, cell.depth)
                if cell.length not in self.lengths or cell.depth not in self.depths:
                    raise ValueError(
                        f"{self.task}: cell {key} is not on the grid of lengths {list(self.lengths)} "
                        f"and depths {list(self.depths)}"
                    )
                if key in seen:
                    raise ValueError(f"{self.task}: cell {key} is given twice in one grid")
                seen.add(key)
        for sample in self.samples:
            if sample.length not in self.lengths or sample.depth not in self.depths:
                raise ValueError(
                    f"{self.task}: sample {sample.id!r} has length {sample.length} and depth {sample.depth}, "
                    f"which is no cell of the grid"
                )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskSection:
    """Any other task: its metrics (and subtasks) as a table, and its samples."""

    task: str
    rows: tuple[ScoreRow, ...]
    samples: tuple[Sample, ...] = ()
    title: str = ""
    description: str = ""
    protocol: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditNote:
    """One kind of event that a reader of the scores has to know about, with its count."""

    title: str
    """Such as "Prompts truncated"."""
    count: int
    """0 is worth giving: the page then says "none"."""
    total: int | None = None
    """Out of how many requests."""
    details: tuple[str, ...] = ()
    """One line per model, task or event; the page folds long lists."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What was evaluated."""

    name: str
    path: str = ""
    fingerprint: str = ""
    attention: str = ""
    parameters: int | None = None
    dtype: str = ""
    backend: str = ""
    tokenizer: str = ""
    max_length: int | None = None
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Anything else worth a row: revision, chat template, block geometry."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Enough to run the same thing again."""

    command: str = ""
    config: str = ""
    """The resolved configuration, as YAML text."""
    seed: int | None = None
    git_commit: str = ""
    machine: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Label to value: CPU, GPU, memory, operating system."""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Package to version."""
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Label to value: run directories, start, duration."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReportView:
    """Everything one report shows."""

    title: str
    headline: str
    """The outcome in one plain sentence."""
    models: tuple[ModelCard, ...]
    """The order of every per-model tuple and column."""
    rows: tuple[ScoreRow, ...] = ()
    """The headline table, one row per task."""
    heatmaps: tuple[HeatmapGroup, ...] = ()
    tasks: tuple[TaskSection, ...] = ()
    audit: tuple[AuditNote, ...] = ()
    provenance: Provenance = dataclasses.field(default_factory=Provenance)
    subtitle: str = ""
    created: str = ""
    """Date and time as it is to be shown, e.g. "2025-11-03 14:20 UTC"."""
    method: tuple[str, ...] = ()
    """How the numbers were made, one sentence each: intervals, test, correction, detectable effect."""
    confidence: float = 0.95
    """Level of all intervals."""

    def __post_init__(self) -> None:
        """Check names and per-model tuples.

        Raises:
            ValueError: no models, repeated or unknown model names, or a per-model tuple of another length.
        """
        names = [model.name for model in self.models]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a report needs models with distinct names, got {names}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")
        for row in (*self.rows, *(row for task in self.tasks for row in task.rows)):
            self._check(row.task, row.scores, row.comparisons)
        for group in self.heatmaps:
            for length in group.by_length:
                self._check(f"{group.task} at {length.length}", length.scores, length.comparisons)
            self._check_names(group.task, (grid.model for grid in group.maps))
            self._check_names(group.task, (n for d in group.differences for n in (d.candidate, d.baseline)))
        for samples in [group.samples for group in self.heatmaps] + [task.samples for task in self.tasks]:
            for sample in samples:
                self._check_names(f"sample {sample.id!r}", (reply.model for reply in sample.replies))

    def _check(self, where: str, scores: tuple[Estimate | None, ...], pairs: tuple[Comparison, ...]) -> None:
        if len(scores) != len(self.models):
            raise ValueError(
                f"{where}: {len(scores)} scores for {len(self.models)} models; "
                "give one per model, None if missing"
            )
        self._check_names(where, (name for pair in pairs for name in (pair.candidate, pair.baseline)))

    def _check_names(self, where: str, names: Iterable[str]) -> None:
        known = {model.name for model in self.models}
        unknown = sorted(set(names) - known)
        if unknown:
            raise ValueError(
                f"{where}: unknown model {unknown[0]!r}; the report's models are {sorted(known)}"
            )
