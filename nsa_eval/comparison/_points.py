"""Rows in the unit that tables show: scores within 0..1 are points of 100 in JSON, as they are in CSV.

Inside of Python they keep the metric's own scale. A number of twelve decimals goes to points of ten and comes
back the same, so that a comparison that was written and read is equal to the one that was computed.
"""

from collections.abc import Callable, Mapping
from typing import Any

_NUMBERS = ("baseline_score", "candidate_score", "difference", "interval", "bootstrap", "minimum_detectable")
_INSIDE = ("mean", "low", "high", "interval")


def to_points(row: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped row as JSON and CSV have it."""
    return _changed(row, lambda value: round(100 * value, 10))


def from_points(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same row in its own scale again."""
    return _changed(row, lambda value: round(value / 100, 12))


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped row with no more decimals than survive."""
    return _changed(row, lambda value: round(value, 12))


def _changed(row: Mapping[str, Any], change: Callable[[float], float]) -> dict[str, Any]:
    if row.get("unit") != "points":
        return dict(row)
    numbers = {key: _number(row[key], change) for key in _NUMBERS if key in row}
    return {**row, **numbers, "lengths": [_changed(sub, change) for sub in row.get("lengths", ())]}


def _number(value: Any, change: Callable[[float], float]) -> Any:  # noqa: ANN401 - a number, an interval, ...
    if isinstance(value, Mapping):
        return {key: _number(part, change) if key in _INSIDE else part for key, part in value.items()}
    return change(value) if isinstance(value, int | float) else value
