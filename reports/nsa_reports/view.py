"""What sections of a report are made of, as plain data: scores, differences, grids, samples.

Nothing here computes a statistic or formats a number. Whoever owns the results fills these dataclasses in and
puts them into the data of a section (`nsa_reports.page`), and `nsa_reports.render` makes a page of it. Three
rules hold throughout:

* per-model tuples follow the order of `Page.models`, with None where a model has no result;
* scores with `percent=True` are fractions (0.93 is shown as 93.0 %), and so are their differences;
* a missing cell is None or absent, never 0, and is drawn blank.

Constructors check that the pieces fit together (`ValueError`), so that wrong data fails where it is made and
not inside a template.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShownScore:
    """One score with its own confidence interval."""

    value: float
    low: float | None = None
    """Lower end of the interval at `Page.confidence`; None when no interval is known."""
    high: float | None = None
    n: int | None = None
    """Documents behind the score."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShownDifference:
    """Candidate minus baseline on the same documents."""

    candidate: str
    """Name of a model in `Page.models`."""
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
    too_few: bool = False
    """The documents were too few to find any difference."""
    test: str = ""
    """Name of the test behind p, such as "exact McNemar"."""
    n: int | None = None
    """Paired documents."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One line of a score table: a task (or a metric of it), every model, every comparison."""

    task: str
    metric: str
    scores: tuple[ShownScore | None, ...]
    """One per model, in the order of `Page.models`."""
    comparisons: tuple[ShownDifference, ...] = ()
    n: int | None = None
    protocol: str = ""
    """"official", "project", or the name of the tool whose reading of the benchmark is followed."""
    data: str = ""
    """The data set with its checksum."""
    truncation: str = ""
    """What became of prompts that were too long, and of how many."""
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
    """Mean score (a fraction, unless its group says otherwise), or the difference of two; None draws a
    blank."""
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
    """All depths of one length together, or one bucket of tokens by position."""

    length: int
    """Tokens; of a bucket, where it ends."""
    scores: tuple[ShownScore | None, ...]
    comparisons: tuple[ShownDifference, ...] = ()
    n: int | None = None
    percent: bool = True
    """As in `ScoreRow`."""
    higher_is_better: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One bucket of tokens on a curve, or one context length."""

    end: int
    """Where the bucket ends, in tokens from the start of the text; or the context length."""
    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelCurve:
    """A score over position. Points ascend; a bucket without a value is left out."""

    model: str
    points: tuple[CurvePoint, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceCurve:
    """Candidate minus baseline over position, on the same documents."""

    candidate: str
    baseline: str
    points: tuple[CurvePoint, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CurveGroup:
    """One metric of one task over position, or over length: a curve per model, and the differences."""

    task: str
    metric: str
    unit: str
    """What its values are counted in: "nats a token"."""
    curves: tuple[ModelCurve, ...]
    differences: tuple[DifferenceCurve, ...] = ()
    rows: tuple[LengthRow, ...] = ()
    """The same as a table, a bucket a row."""
    over: str = "position"
    """What it runs over, in the chart's name."""
    x_label: str = "position: end of the bucket (tokens)"
    place: str = "up to"
    """What stands before a point's number of tokens where it is read out."""
    threshold: float | None = None
    """A value to reach, drawn as a line across the models' curves."""

    def __post_init__(self) -> None:
        """Check that every curve runs from left to right.

        Raises:
            ValueError: an end repeats, or comes before a smaller one, or is not positive.
        """
        listed = [curve.points for curve in self.curves] + [curve.points for curve in self.differences]
        for points in listed:
            ends = [point.end for point in points]
            if ends != sorted(set(ends)) or (ends and ends[0] <= 0):
                raise ValueError(f"{self.task}: ends of buckets must ascend from above 0, got {ends}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """What a filter of the task took from a model's replies, and scored."""

    filter: str
    """Its name; empty where the task has one filter only."""
    texts: tuple[str, ...]
    """One per reply, or what was made of all of them."""
    score: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one model answered to one document."""

    model: str
    text: str
    """The first reply."""
    more: tuple[str, ...] = ()
    """The others, where the document was asked several times."""
    score: float | None = None
    """Of the document: the mean over all replies that count."""
    extracts: tuple[Extract, ...] = ()
    """What was taken from the replies and scored, where that isn't the replies themselves."""
    reasons: tuple[str, ...] = ()
    """For each reply, what it holds instead of the answer; empty texts for right ones."""
    notes: tuple[str, ...] = ()
    """Remarks such as "truncated from 70,000 to 65,536 tokens"."""
    prompt_end: str | None = None
    """This model's own prompt end where it differs (chat template, tokenizer); None = the sample's."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShownSample:
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
    samples: tuple[ShownSample, ...] = ()
    title: str = ""
    """Shown instead of the task's name when set."""
    description: str = ""
    """One or two plain sentences: haystack, needle, question, metric."""
    protocol: str = ""
    percent: bool = True
    """Fractions shown as percent; False shows plain numbers on a scale of their own."""
    unit: str = ""
    """Of plain numbers: what they are and what they are counted in, such as "nll (nats a token)"."""
    higher_is_better: bool = True

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
