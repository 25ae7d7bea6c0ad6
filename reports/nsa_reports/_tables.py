"""Score tables worked out to the last character, so that the templates only place text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from nsa_reports import _format as fmt
from nsa_reports.view import LengthRow, ScoreRow, ShownDifference, ShownScore

BAR_WIDTH = 120.0
_BAR_MARGIN = 6.0
_UNDECIDED = {
    "same": "not distinguishable",
    "few": "not distinguishable (too few documents)",
    "none": fmt.MISSING,
}
# Scores side by side, and then differences, p and verdict, fit a page's width with as many models as this.
_MODELS_ACROSS = 3
_LONGEST_HEAD, _LONGEST_LINE = 26, 40
"""Characters of a model's name at the head of a column, and of a line."""
_NICE_SCALES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """An interval against 0, in the pixels of an SVG `BAR_WIDTH` wide."""

    low: float
    high: float
    point: float
    """0 is in the middle."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreText:
    """One model's cell."""

    value: str
    interval: str
    best: bool
    """Set for the winner of a significant comparison only: an unproven lead is not made bold."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonText:
    """The cells of one comparison."""

    pair: str
    difference: str
    interval: str
    bar: Bar | None
    bar_scale: str
    """Half-width of this bar where it is not the table's own."""
    verdict: str
    verdict_kind: str
    """"candidate", "baseline", "same", "few" or "none": picks the colour."""
    p: str
    p_adjusted: str
    minimum_detectable: str
    test: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelLine:
    """One model of a row, where models stand below each other."""

    name: str
    full_name: str
    score: ScoreText
    comparison: ComparisonText | None
    """With the table's baseline."""
    is_baseline: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RowText:
    """One row (several lines when more than one comparison is made)."""

    label: str
    metric: str
    protocol: str
    origin: tuple[str, ...]
    """Where the scores come from: the data with its checksum, what was cut."""
    n: str
    scores: tuple[ScoreText, ...]
    comparisons: tuple[ComparisonText, ...]
    lines: tuple[ModelLine, ...]
    """One per model, for tables `by_model`."""
    tests: tuple[str, ...]
    """Behind its p values."""
    bar_scale: str
    """Half-width of its bars where it is not the table's own."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A score table; columns that no row fills are left out by the template."""

    models: tuple[tuple[str, str], ...]
    """Short name for the column head, full name."""
    first: str
    rows: tuple[RowText, ...]
    has_comparisons: bool
    has_n: bool
    has_p: bool
    has_p_adjusted: bool
    has_minimum_detectable: bool
    many_pairs: bool
    """Whether a column says which models are compared."""
    by_model: bool
    """Whether models stand below each other: side by side they would push the comparison off the page."""
    heading: str
    """What the column of differences subtracts from what, where that is the same for all rows."""
    scale: str
    """Half-width of the interval bars of percent rows, such as "20 pp"; empty when there are none."""

    @property
    def comparison_columns(self) -> int:
        """How many columns a comparison takes."""
        adjusted = self.by_model and self.has_p_adjusted  # beside p, not under it
        return 3 + self.many_pairs + self.has_p + adjusted + self.has_minimum_detectable

    @property
    def columns(self) -> int:
        """How many columns a table `by_model` has."""
        return 2 + (self.comparison_columns if self.has_comparisons else 0)


def _verdict(pair: ShownDifference, higher_is_better: bool) -> tuple[str, str]:
    """Kind of verdict and, when one model won, its name."""
    if pair.significant is None or fmt.finite(pair.difference) is None:
        return "none", ""
    if not pair.significant:
        return "few" if pair.too_few else "same", ""
    ahead = (pair.difference > 0) == higher_is_better
    return ("candidate", pair.candidate) if ahead else ("baseline", pair.baseline)


def _extent(pairs: Iterable[ShownDifference]) -> float:
    ends = [fmt.finite(end) for pair in pairs for end in (pair.difference, pair.low, pair.high)]
    return max((abs(end) for end in ends if end is not None), default=0.0)


def _bar(pair: ShownDifference, scale: float) -> Bar | None:
    point = fmt.finite(pair.difference)
    if point is None or scale <= 0:
        return None
    low, high = fmt.finite(pair.low), fmt.finite(pair.high)

    def place(value: float) -> float:
        share = min(max(value / scale, -1.0), 1.0)
        return round(BAR_WIDTH / 2 + share * (BAR_WIDTH / 2 - _BAR_MARGIN), 1)

    return Bar(
        low=place(point if low is None else low),
        high=place(point if high is None else high),
        point=place(point),
    )


def _comparison(
    pair: ShownDifference, row: ScoreRow, short: Mapping[str, str], scale: float, own: float | None
) -> ComparisonText:
    percent = row.percent
    kind, winner = _verdict(pair, row.higher_is_better)
    detectable = fmt.finite(pair.minimum_detectable)
    return ComparisonText(
        pair=f"{short[pair.candidate]} {fmt.MINUS} {short[pair.baseline]}",
        difference=fmt.difference(pair.difference, percent=percent),
        interval=fmt.interval(pair.low, pair.high, percent=percent, signed=True),
        bar=_bar(pair, scale),
        bar_scale="" if own is None else fmt.difference(own, percent=False).lstrip("+"),
        verdict=f"{short[winner]} better" if winner else _UNDECIDED[kind],
        verdict_kind=kind,
        p=fmt.p_value(pair.p),
        p_adjusted=fmt.p_value(pair.p_adjusted),
        minimum_detectable=fmt.difference(detectable, percent=percent).lstrip("+"),
        test=pair.test,
    )


def _winners(pairs: Sequence[ShownDifference], higher_is_better: bool) -> set[str]:
    won: set[str] = set()
    lost: set[str] = set()
    for pair in pairs:
        kind = _verdict(pair, higher_is_better)[0]
        if kind in ("candidate", "baseline"):
            winner, loser = (pair.candidate, pair.baseline)[:: 1 if kind == "candidate" else -1]
            won.add(winner)
            lost.add(loser)
    return won - lost


def _scores(
    models: Sequence[str], scores: Sequence[ShownScore | None], winners: set[str], percent: bool
) -> tuple[ScoreText, ...]:
    texts = []
    for model, estimate in zip(models, scores, strict=True):
        if estimate is None:
            texts.append(ScoreText(value=fmt.MISSING, interval="", best=False))
        else:
            texts.append(
                ScoreText(
                    value=fmt.score(estimate.value, percent=percent),
                    interval=fmt.interval(estimate.low, estimate.high, percent=percent),
                    best=model in winners,
                )
            )
    return tuple(texts)


def _sample_count(
    n: int | None, scores: Sequence[ShownScore | None], pairs: Sequence[ShownDifference]
) -> int | None:
    if n is not None:
        return n
    counts = {pair.n for pair in pairs} or {estimate.n for estimate in scores if estimate is not None}
    return counts.pop() if len(counts) == 1 else None


def build_table(
    models: Sequence[str], rows: Sequence[ScoreRow], *, first: str = "Task", one_metric: bool = False
) -> Table:
    """Format score rows; all percent rows share one bar scale, other rows have their own.

    Args:
        models: model names, in the order of every row's scores.
        rows: what to show.
        first: heading of the first column.
        one_metric: all rows are of one metric, and so share their scale whatever its unit.
    """
    shared = _extent(pair for row in rows if row.percent for pair in row.comparisons)
    shared = next((nice for nice in _NICE_SCALES if 0 < shared <= nice), shared)
    raw = _extent(pair for row in rows if not row.percent for pair in row.comparisons) if one_metric else 0.0
    baselines = {pair.baseline for row in rows for pair in row.comparisons}
    by_model = len(models) > _MODELS_ACROSS and len(baselines) < 2
    # A line's own name has room; as a column's head it would widen the table.
    short = fmt.short_names(models, _LONGEST_LINE if by_model else _LONGEST_HEAD)
    texts = []
    for row in rows:
        scale = shared if row.percent else raw or _extent(row.comparisons)
        n = _sample_count(row.n, row.scores, row.comparisons)
        scores = _scores(models, row.scores, _winners(row.comparisons, row.higher_is_better), row.percent)
        own = scale if not row.percent and not raw else None
        compared = tuple(_comparison(pair, row, short, scale, own) for pair in row.comparisons)
        by_candidate = {pair.candidate: text for pair, text in zip(row.comparisons, compared, strict=True)}
        texts.append(
            RowText(
                label=row.task,
                metric=row.metric,
                protocol=row.protocol,
                origin=tuple(text for text in (row.data, row.truncation) if text),
                n=fmt.count(n) if n is not None else "",
                scores=scores,
                comparisons=compared,
                lines=tuple(
                    ModelLine(
                        name=short[model],
                        full_name=model,
                        score=score,
                        comparison=by_candidate.get(model),
                        is_baseline=model in baselines,
                    )
                    for model, score in zip(models, scores, strict=True)
                ),
                tests=tuple(dict.fromkeys(pair.test for pair in row.comparisons if pair.test)),
                bar_scale=next((text.bar_scale for text in compared), ""),
            )
        )
    pairs = [pair for row in texts for pair in row.comparisons]
    distinct = {pair.pair for pair in pairs}
    one = next(iter(distinct)) if len(distinct) == 1 else ""
    return Table(
        models=tuple((short[model], model) for model in models),
        first=first,
        rows=tuple(texts),
        has_comparisons=bool(pairs),
        has_n=any(row.n for row in texts),
        has_p=any(pair.p != fmt.MISSING for pair in pairs),
        has_p_adjusted=any(pair.p_adjusted != fmt.MISSING for pair in pairs),
        has_minimum_detectable=any(pair.minimum_detectable != fmt.MISSING for pair in pairs),
        many_pairs=len(distinct) > 1 and not by_model,
        by_model=by_model,
        heading=f"to {short[next(iter(baselines))]}" if by_model and baselines else one,
        scale=_scale_text(shared, raw),
    )


def _scale_text(points: float, raw: float) -> str:
    """Half-width of the bars that all rows share."""
    if raw > 0:
        return fmt.difference(raw, percent=False).lstrip("+")
    return fmt.difference(points).lstrip("+").replace(".0", "") if points > 0 else ""


def length_table(models: Sequence[str], rows: Sequence[LengthRow], *, first: str = "Length") -> Table:
    """The same table with one row per context length.

    Args:
        models: model names, in the order of every row's scores.
        rows: of one metric.
        first: heading of the first column.
    """
    return build_table(
        models,
        [
            ScoreRow(
                task=fmt.tokens(row.length),
                metric="",
                scores=row.scores,
                comparisons=row.comparisons,
                n=row.n,
                percent=row.percent,
                higher_is_better=row.higher_is_better,
            )
            for row in rows
        ],
        first=first,
        one_metric=True,
    )
