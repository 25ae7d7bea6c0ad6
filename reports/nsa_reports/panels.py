"""Grids of a needle task laid out once: the page and the paper figures both read these."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from nsa_reports import _colours
from nsa_reports import _format as fmt
from nsa_reports.view import Cell, HeatmapGroup

_SHADES = 200
"""Steps of a colour map: half a percent each. Neighbours can't be told apart, and a page names each once."""
_LONGEST_TITLE = 40
"""Characters of a model's name above its map, which may break in two lines."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One heatmap: rows are depths (first = top), columns are lengths; None where no cell is known."""

    title: str
    """Short enough for a heading."""
    full_title: str
    is_difference: bool
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    matrix: tuple[tuple[Cell | None, ...], ...]
    limit: float
    """Half-width of the colour scale of a difference."""
    low: float = 0.0
    """Where the colour scale of scores begins and ends."""
    high: float = 1.0
    percent: bool = True
    unit: str = ""
    """Of plain numbers: what they are."""
    higher_is_better: bool = True

    @property
    def row_labels(self) -> list[str]:
        """The depths, as they are read: `50 %`."""
        return [f"{fmt.depth(depth)} %" for depth in self.depths]

    @property
    def column_labels(self) -> list[str]:
        """The lengths, as they are read: `64k`."""
        return [fmt.tokens(length) for length in self.lengths]

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends of the colour scale."""
        return (-self.limit, self.limit) if self.is_difference else (self.low, self.high)

    @property
    def scale_labels(self) -> tuple[str, str]:
        """The ends of the colour scale, as they are read: `0 %`, `+20 pp`, `3.5`."""
        low, high = self.bounds
        if not self.percent:
            return fmt.brief(low, signed=self.is_difference), fmt.brief(high, signed=self.is_difference)
        if self.is_difference:
            return f"{fmt.MINUS}{-100 * low:.0f} pp", f"+{100 * high:.0f} pp"
        return f"{100 * low:.0f} %", f"{100 * high:.0f} %"

    @property
    def gradient(self) -> str:
        """The colour scale from its low to its high end, as a CSS gradient."""
        return _colours.css_gradient(self.colours)

    @property
    def kind(self) -> str:
        """What its values are, for those who hear the map."""
        if not self.percent:
            return self.unit
        return "percentage points" if self.is_difference else "%"

    def colour(self, value: float) -> str:
        """Where a value stands on the colour map, as a colour."""
        low, high = self.bounds
        return _colours.colour_at(self.colours, round(_SHADES * (value - low) / (high - low)) / _SHADES)

    def ink(self, value: float) -> str:
        """The colour of the text in a cell of that value."""
        return _colours.ink_on(self.colour(value))

    def cell_style(self, cell: Cell) -> str:
        """Ground and text of a cell that has a value, as CSS."""
        assert cell.value is not None, "blank cells have no colour"
        return f"background:{self.colour(cell.value)};color:{self.ink(cell.value)}"

    @property
    def has_blanks(self) -> bool:
        """Whether a cell of it is unknown."""
        return any(self.cell_text(cell) == "" for row in self.matrix for cell in row)

    @property
    def colours(self) -> tuple[str, ...]:
        """The stops of this panel's colour map, low values first: what is better has the same end always."""
        stops = _colours.DIFFERENCE if self.is_difference else _colours.SCORE
        return stops if self.higher_is_better else stops[::-1]

    def cell_text(self, cell: Cell | None) -> str:
        """What is printed inside a cell: whole percent, or a short number; blank when missing."""
        value = None if cell is None else fmt.finite(cell.value)
        if value is None:
            return ""
        if not self.percent:
            return fmt.brief(value, signed=self.is_difference)
        text = f"{100 * value:+.0f}" if self.is_difference else f"{100 * value:.0f}"
        return ("0" if float(text) == 0 else text).replace("-", fmt.MINUS)

    def cell_label(self, cell: Cell | None) -> str:
        """Score or difference in full with its interval and count, for hovers and screen readers."""
        value = None if cell is None else fmt.finite(cell.value)
        if cell is None or value is None:
            return "no result"
        one = fmt.difference if self.is_difference else fmt.score
        shown = one(value, percent=self.percent)
        ends = fmt.interval(cell.low, cell.high, percent=self.percent, signed=self.is_difference)
        number = "" if cell.n is None else f"n = {cell.n:,}"
        return ", ".join(part for part in (f"{shown} {ends}".strip(), number) if part)


def _matrix(
    cells: Sequence[Cell], lengths: Sequence[int], depths: Sequence[float]
) -> tuple[tuple[Cell | None, ...], ...]:
    known = {(cell.length, cell.depth): cell for cell in cells}
    return tuple(tuple(known.get((length, depth)) for length in lengths) for depth in depths)


def nice_end(value: float) -> float:
    """The next round number from a positive one on: 1, 1.5, 2, 3, 4, 5, 6, 8 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(nice * power for nice in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if nice * power >= value * (1 - 1e-9))


def difference_limit(groups: Sequence[HeatmapGroup]) -> float:
    """One half-width for all difference maps of these groups, so that their colours can be compared.

    The largest difference rounded up to 10 points, and at least 20: smaller ones are mostly noise at the
    usual handful of samples per cell, and should not be drawn in full colour.
    """
    largest = max((_largest_difference(group) for group in groups if group.percent), default=0.0)
    return max(0.2, math.ceil(round(10 * largest, 6)) / 10)


def _largest_difference(group: HeatmapGroup) -> float:
    values = (fmt.finite(cell.value) for grid in group.differences for cell in grid.cells)
    return max((abs(value) for value in values if value is not None), default=0.0)


def _score_scale(group: HeatmapGroup) -> tuple[float, float]:
    """Ends of the colour scale of all models' scores: 0 to 1, or round numbers around them."""
    if group.percent:
        return 0.0, 1.0
    found = (fmt.finite(cell.value) for grid in group.maps for cell in grid.cells)
    values = [value for value in found if value is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    # From 0 where nothing is below: how far from perfect a likelihood is shows then.
    return -nice_end(-low) if low < 0 else 0.0, nice_end(high) if high > 0 else 1.0 if low >= 0 else 0.0


def panels_of(group: HeatmapGroup, limit: float) -> tuple[Panel, ...]:
    """Panels of one task: the models' in the order given, then the differences.

    Args:
        group: The task.
        limit: Half-width of the scale of differences in fractions; plain numbers have one of their own.
    """
    low, high = _score_scale(group)
    if not group.percent:
        limit = nice_end(_largest_difference(group) or 1.0)
    shape: dict[str, Any] = {
        "percent": group.percent,
        "unit": group.unit,
        "higher_is_better": group.higher_is_better,
        "lengths": group.lengths,
        "depths": group.depths,
    }
    pairs = [name for grid in group.differences for name in (grid.candidate, grid.baseline)]
    short = fmt.short_names([*(grid.model for grid in group.maps), *pairs], _LONGEST_TITLE)
    scores = [
        Panel(
            title=short[grid.model],
            full_title=grid.model,
            is_difference=False,
            matrix=_matrix(grid.cells, group.lengths, group.depths),
            limit=1.0,
            low=low,
            high=high,
            **shape,
        )
        for grid in group.maps
    ]
    differences = [
        Panel(
            title=f"{short[grid.candidate]} {fmt.MINUS} {short[grid.baseline]}",
            full_title=f"{grid.candidate} {fmt.MINUS} {grid.baseline}",
            is_difference=True,
            matrix=_matrix(grid.cells, group.lengths, group.depths),
            limit=limit,
            **shape,
        )
        for grid in group.differences
    ]
    return (*scores, *differences)
