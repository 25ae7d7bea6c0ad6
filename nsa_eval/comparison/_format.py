"""How numbers and names are written: the same in every format."""

from collections.abc import Iterator
from dataclasses import dataclass

from nsa_eval.comparison._types import TOO_FEW, Comparison, Estimate, Row
from nsa_eval.comparison.intervals import Interval


def format_p(p: float) -> str:
    """A p-value: three decimals, "<0.001" below that."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def format_length(tokens: int) -> str:
    """1024 -> "1k", 512 -> "512": lengths as the configs write them."""
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def format_score(value: float, row: Row, *, signed: bool = False) -> str:
    """A score or difference: points of 100 with one decimal, or four digits of the metric's own unit."""
    text = f"{value * 100:+.1f}" if row.unit == "points" else f"{value:+.4g}"
    # A sign in front of zero would be a direction that isn't there.
    if float(text) == 0 or (not signed and value >= 0):
        return text[1:]
    return text


def format_interval(interval: Interval | None, row: Row, *, signed: bool = False) -> str:
    """[low, high], or [unknown]."""
    if interval is None:
        return "[unknown]"
    low, high = (format_score(end, row, signed=signed) for end in (interval.low, interval.high))
    return f"[{low}, {high}]"


def verdict_words(row: Row) -> str:
    """The verdict in few words; one that could only find nothing says so."""
    return TOO_FEW if row.too_few_documents else row.verdict


def verdict_text(row: Row) -> str:
    """The verdict in words; one that finds nothing says what it could have found."""
    if row.verdict != "not distinguishable":
        return row.verdict
    if row.too_few_documents:
        return "not distinguishable (too few documents to see any difference)"
    if row.minimum_detectable is None:
        return "not distinguishable (no spread to tell what could have been seen)"
    unit = " points" if row.unit == "points" else ""
    least = format_score(row.minimum_detectable, row)
    return f"not distinguishable (differences under {least}{unit} would not be seen)"


@dataclass(frozen=True, slots=True)
class Line:
    """A row with everything written out; a format picks what it has room for."""

    row: Row
    name: str
    """The task, with the metric if there are several; for a sub-row its length."""
    n: str
    baseline: tuple[str, str]
    """Score and interval."""
    candidate: tuple[str, str]
    difference: tuple[str, str]
    bootstrap: str
    won_lost: str
    p: str
    p_adjusted: str
    detectable: str

    @property
    def sub(self) -> bool:
        """Whether this is one length of the task above."""
        return self.row.length is not None

    @property
    def indent(self) -> int:
        """How far it stands in: below its groups, and a length below its task."""
        return self.row.depth + self.sub


def lines(comparison: Comparison, *, lengths: bool) -> Iterator[Line]:
    """The rows of a comparison, each followed by its sub-rows if `lengths`."""
    several = len({(row.metric, row.filter) for row in comparison.rows}) > 1
    for main in comparison.rows:
        for row in (main, *(main.lengths if lengths else ())):
            metric = row.metric if row.filter == "none" else f"{row.metric}, {row.filter}"
            name = f"{row.task} ({metric})" if several else row.task
            name += "" if row.unit == "points" else " [raw]"
            detectable = row.minimum_detectable
            yield Line(
                row=row,
                name=name if row.length is None else format_length(row.length),
                n=str(row.n),
                baseline=_estimate(row.baseline_score, row),
                candidate=_estimate(row.candidate_score, row),
                difference=(
                    format_score(row.difference, row, signed=True),
                    format_interval(row.interval, row, signed=True),
                ),
                bootstrap=format_interval(row.bootstrap, row, signed=True),
                won_lost=f"{row.wins}/{row.losses}",
                p=format_p(row.p),
                p_adjusted=format_p(row.p_adjusted),
                detectable="-" if detectable is None else format_score(detectable, row),
            )


def legend(comparison: Comparison) -> str:
    """What the columns mean, in a few sentences."""
    meant = f"COMPARED ALTHOUGH {comparison.meant}. " if comparison.allowed else ""
    return (
        f"{meant}Scores and differences in points of 100 with {comparison.confidence * 100:g} % "
        "intervals; rows marked [raw] in the metric's own unit. Difference: candidate minus baseline on the "
        "same documents. won/lost: documents on which the candidate scores better/worse. MDE: smallest true "
        f"difference found with {comparison.power * 100:g} % power."
    )


def _estimate(estimate: Estimate, row: Row) -> tuple[str, str]:
    return format_score(estimate.mean, row), format_interval(estimate.interval, row)
