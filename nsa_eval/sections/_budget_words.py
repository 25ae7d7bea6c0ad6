"""What the tables of the budgets section say, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nsa_eval.budgets import Line, Place, Point
from nsa_eval.budgets.least import Trial
from nsa_reports import figure

_ROUNDING = 5e-4
"""A density that so little separates from 1 is written as 100 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastCell:
    """The least budget of one sweep on one place."""

    text: str
    note: str
    kind: Literal["found", "none", "few", "unknown", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One budget against full attention."""

    sweep: str
    value: str
    n: int
    difference: str
    interval: str
    verdict: str
    counts: bool
    """Whether the sequence of tests had come to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRow:
    """One measured point; empty where there is no such figure."""

    sweep: str
    value: str
    score: str
    interval: str
    prefill: str
    decode: str
    sources: str
    """Who says the densities of a method, where not both were counted."""
    read: str
    kept: str
    flops: str
    elements: str
    decode_ms: str
    prefill_s: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IsoRow:
    """Scores at one cost."""

    density: str
    cost: str
    share: str
    """Of what dense attention costs."""
    cells: tuple[tuple[str, bool] | None, ...]
    """Score of each sweep, and whether it is interpolated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IsoTable:
    """Scores of all sweeps of a place at equal costs."""

    title: str
    head: str
    sweeps: tuple[str, ...]
    rows: tuple[IsoRow, ...]


def place_name(place: Place) -> str:
    """A task, with the length where it has some: `needle_single at 1k`."""
    return place.task if place.length is None else f"{place.task} at {tokens(place.length)}"


def tokens(length: int) -> str:
    """A length as the field writes it: 512, 1k, 3,000."""
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else f"{length:,}"


def least_cell(line: Line, place: Place) -> LeastCell:
    """The outcome of a sweep's tests."""
    least, sweep = line.least, line.sweep
    if line.as_full:
        return LeastCell(text="as full", note="acts in decode alone; nothing is decoded here", kind="full")
    if least is None or least.outcome == "unknown":
        why = "this run has no full attention for it" if sweep.reference is None else ""
        return LeastCell(text="not compared", note=why, kind="unknown")
    if least.outcome == "too few":
        n = max(trial.n for trial in least.trials)
        return LeastCell(
            text="too few documents", note=f"{n:,}; {least.needed:,} or more could show it", kind="few"
        )
    if least.found is None:
        text = "none of those tried" if sweep.parameter else "not shown"
        return LeastCell(text=text, note=_end(least.trials[0], place), kind="none")
    point = next(one for one in line.points if one.label == least.found.label)
    text = f"{sweep.parameter} {point.value}" if sweep.parameter else "not worse"
    return LeastCell(
        text=text.removeprefix("budget "),
        note=", ".join(part for part in (_reads(point), _end(least.found, place)) if part),
        kind="found",
    )


def trial_rows(place: Place) -> tuple[TrialRow, ...]:
    """Every budget of every sweep against full attention, largest first."""
    rows: list[TrialRow] = []
    for line in place.lines:
        if line.least is None or line.as_full:
            continue
        open_ = True
        values = {point.label: point.value for point in line.points}
        for trial in line.least.trials:
            verdict = {True: "not worse", False: "not shown", None: "no interval"}[trial.not_worse]
            ends = trial.interval
            rows.append(
                TrialRow(
                    sweep=line.sweep.name,
                    value=values.get(trial.label) or "",
                    n=trial.n,
                    difference=_signed(trial.difference, place),
                    interval=f"[{_signed(ends.low, place)}, {_signed(ends.high, place)}]" if ends else "",
                    verdict=verdict,
                    counts=open_,
                )
            )
            open_ = open_ and bool(trial.not_worse)
    return tuple(rows)


def point_rows(place: Place) -> tuple[PointRow, ...]:
    """Full attention, then every point of every sweep."""
    listed = [(point.label, point, False) for point in place.full]
    listed += [
        (line.sweep.name, point, bool(line.sweep.variants[0].method))
        for line in place.lines
        for point in line.points
    ]
    return tuple(_point_row(name, point, place, counts=counts) for name, point, counts in listed)


def iso_tables(place: Place) -> tuple[IsoTable, ...]:
    """Equal FLOPs and equal reads, where there are such."""
    found = []
    for title, head, unit, suffix, equal in (
        ("At equal FLOPs of a prompt (isoFLOPS)", "FLOPs of a prompt", 1e9, " G", place.iso_flops),
        ("At equal reads of a decode step (isoCost)", "Elements read", 1e6, " M", place.iso_cost),
    ):
        rows = tuple(
            IsoRow(
                density=_share(one.level.density),
                cost=figure(one.level.cost / unit) + suffix,
                share=_share(one.level.share),
                cells=tuple(
                    None if score is None else (_score(score.value, place), score.interpolated)
                    for score in one.scores
                ),
            )
            for one in equal
        )
        if rows:
            names = tuple(line.sweep.name for line in place.lines)
            found.append(IsoTable(title=title, head=head, sweeps=names, rows=rows))
    return tuple(found)


def _point_row(name: str, point: Point, place: Place, *, counts: bool) -> PointRow:
    sources = [
        f"{phase} {density.source}"
        for density, phase in ((point.prefill, "prompt"), (point.decode, "decode"))
        if density is not None and density.source != "counted" and counts
    ]
    score = point.score
    ends = (
        ""
        if score.low is None or score.high is None
        else f"[{_score(score.low, place)}, {_score(score.high, place)}]"
    )
    return PointRow(
        sweep=name,
        value=point.value,
        score=_score(score.value, place),
        interval=ends,
        prefill="" if point.prefill is None else _share(point.prefill.value),
        decode="" if point.decode is None else _share(point.decode.value),
        sources="; ".join(sources),
        read=_tokens(point.read),
        kept=_tokens(point.kept),
        flops=_number(point.flops, 1e9, " G"),
        elements=_number(point.elements, 1e6, " M"),
        decode_ms=_number(point.decode_ms, 1, " ms"),
        prefill_s=_number(point.prefill_seconds, 1, " s"),
    )


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _tokens(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else figure(value)


def _number(value: float | None, unit: float = 1.0, suffix: str = "") -> str:
    return "" if value is None else figure(value / unit) + suffix


def _score(value: float, place: Place) -> str:
    return f"{100 * value:.1f}" if place.percent else f"{value:.4g}"


def _reads(point: Point) -> str:
    """What a budget comes to: the density of the phase in which it is the sparser."""
    found = [
        (density.value, phase)
        for density, phase in ((point.decode, "decode"), (point.prefill, "prefill"))
        if density is not None
    ]
    if not found:
        return ""
    value, phase = min(found)
    return "reads everything" if abs(value - 1) < _ROUNDING else f"{_share(value)} of {phase} cells"


def _end(trial: Trial, place: Place) -> str:
    """How much worse it may be by its interval."""
    if trial.interval is None:
        return ""
    if place.higher_is_better:
        return f"difference at least {_signed(trial.interval.low, place)}"
    return f"difference at most {_signed(trial.interval.high, place)}"


def _signed(value: float, place: Place) -> str:
    text = f"{100 * value:+.1f}" if place.percent else f"{value:+.3g}"
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "\N{MINUS SIGN}")
