"""Heatmaps drawn for papers: panels in a row or two, with their colour bars, at sizes in inches.

All of a figure stands on one axis in inches, placed by hand. Matplotlib's own axes, ticks and layout take
most of the time that drawing takes, and a run of sixty variants has a hundred such figures.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from nsa_reports import _colours
from nsa_reports import _format as fmt
from nsa_reports.charts import nice_ticks
from nsa_reports.panels import Panel

PANELS_IN_ROW = 3
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": 8,
    "axes.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "nsa-reports",
    "pdf.fonttype": 42,  # TrueType: publishers refuse type 3
}
_CELL = (0.44, 0.27)  # inches; a 6 x 11 grid of three panels then fits the width of a two-column page
_CELL_MIN = (1.9, 1.5)
_LEFT, _GAP, _TITLE, _LINE, _BELOW = 0.56, 0.14, 0.26, 0.15, 0.4
_BAR_GAP, _BAR, _BAR_LABELS = 0.08, 0.115, 0.62
_BAR_STEPS = 64
_LETTERS = 16  # of a title in an inch


@dataclasses.dataclass(frozen=True, slots=True)
class _Box:
    """A panel's cells: the upper left corner and the size, in inches."""

    x: float
    y: float
    width: float
    height: float


def draw(panels: Sequence[Panel]) -> Figure:
    """Panels in one row, or scores above differences when there are more than three."""
    width = max(len(panels[0].lengths) * _CELL[0], _CELL_MIN[0])
    height = max(len(panels[0].depths) * _CELL[1], _CELL_MIN[1])
    kinds = [
        kind
        for kind in (
            [panel for panel in panels if not panel.is_difference],
            [panel for panel in panels if panel.is_difference],
        )
        if kind
    ]
    rows = [[kind] for kind in kinds] if len(panels) > PANELS_IN_ROW else [kinds]
    across = max(sum(map(len, row)) for row in rows)
    bars = max(map(len, rows))
    size_x = _LEFT + across * width + (across - bars) * _GAP + bars * (_BAR_GAP + _BAR + _BAR_LABELS)
    room = int(width * _LETTERS)
    titles = {id(panel): title_lines(panel.title, room) for panel in panels}
    heads = [
        _TITLE + _LINE * any("\n" in titles[id(panel)] for kind in row for panel in kind) for row in rows
    ]
    size_y = sum(heads) + len(rows) * (height + _BELOW)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(size_x, size_y))
        FigureCanvasAgg(figure)
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        y = 0.0
        for row, head in zip(rows, heads, strict=True):
            y += head
            x = _LEFT
            _text(axis, 0.1, y + height / 2, "Needle depth (%)", rotation=90)
            for kind in row:
                for panel in kind:
                    box = _Box(x, y, width, height)
                    _panel(axis, panel, box, titles[id(panel)], labelled=x == _LEFT)
                    x += width + _GAP
                at = x - _GAP
                if len(rows) > 1:  # the bars of both rows stand below each other
                    at = _LEFT + across * (width + _GAP) - _GAP
                _colour_bar(axis, kind[0], _Box(at + _BAR_GAP, y, _BAR, height))
                x = at + _BAR_GAP + _BAR + _BAR_LABELS
            y += height + _BELOW
        axis.set_xlim(0, size_x)  # last: an image sets them
        axis.set_ylim(size_y, 0)
    return figure


def title_lines(name: str, room: int) -> str:
    """A name in one line, or in two of equal length that break it at its joints; what is longer is cut.

    Args:
        name: Of one or two models.
        room: Characters that fit into a line.
    """
    text = plain_line(name, 2 * room)
    if len(text) <= room:
        return text
    pieces = [piece for word in re.split(r"(?<= )", text) for piece in fmt.joints(word)]
    splits = [("".join(pieces[:at]), "".join(pieces[at:])) for at in range(1, len(pieces))]
    fits = [pair for pair in splits if max(map(len, pair)) <= room]
    if not fits:
        return plain_line(name, room)
    first, second = min(fits, key=lambda pair: max(map(len, pair)))
    return f"{first.rstrip()}\n{second.lstrip()}"


def plain_line(text: str, limit: int) -> str:
    """One line of characters that XML allows, with a long middle cut out."""
    return fmt.shorten(" ".join("".join(char if char.isprintable() else " " for char in text).split()), limit)


def _panel(axis: Axes, panel: Panel, box: _Box, title: str, *, labelled: bool) -> None:
    width, height = box.width / len(panel.lengths), box.height / len(panel.depths)
    squares, colours = [], []
    for row, cells in enumerate(panel.matrix):
        for column, cell in enumerate(cells):
            value = None if cell is None else fmt.finite(cell.value)
            if value is None:
                continue
            x, y = box.x + column * width, box.y + row * height
            squares.append(_square(x, y, width, height))
            colours.append(panel.colour(value))
            _text(axis, x + width / 2, y + height / 2, panel.cell_text(cell), size=7, color=panel.ink(value))
    # Squares, not an image: they stay vectors in SVG and PDF, and a missing cell is simply not drawn.
    axis.add_collection(
        PolyCollection(squares, facecolors=colours, edgecolors="white", linewidths=0.8), autolim=False
    )
    _text(axis, box.x + box.width / 2, box.y - 0.06, title, size=8.5, va="bottom")
    below = box.y + box.height
    for column, length in enumerate(panel.lengths):
        _text(axis, box.x + (column + 0.5) * width, below + 0.1, fmt.tokens(length))
    _text(axis, box.x + box.width / 2, below + 0.28, "Context length (tokens)")
    for row, depth in enumerate(panel.depths if labelled else ()):
        _text(axis, box.x - 0.06, box.y + (row + 0.5) * height, fmt.depth(depth), ha="right")


def _colour_bar(axis: Axes, panel: Panel, box: _Box) -> None:
    """One colour bar for all panels that share a scale."""
    # The one thing that is an image: as vectors its steps are half of a small map's bytes.
    steps = [_colours.colour_at(panel.colours, 1 - (index + 0.5) / _BAR_STEPS) for index in range(_BAR_STEPS)]
    axis.imshow(
        [[to_rgb(colour)] for colour in steps],
        extent=(box.x, box.x + box.width, box.y + box.height, box.y),
        aspect="auto",
        interpolation="nearest",
        zorder=0,
    )
    axis.add_collection(
        PolyCollection(
            [_square(box.x, box.y, box.width, box.height)],
            facecolors="none",
            edgecolors="black",
            linewidths=0.4,
        ),
        autolim=False,
    )
    low, high = (end * (100 if panel.percent else 1) for end in panel.bounds)
    for tick in nice_ticks(low, high, 6):
        if low - 1e-9 <= tick <= high + 1e-9:
            at = box.y + box.height * (high - tick) / (high - low)
            text = f"{tick:g}".replace("-", fmt.MINUS)
            axis.plot([box.x + box.width, box.x + box.width + 0.03], [at, at], color="black", linewidth=0.5)
            _text(axis, box.x + box.width + 0.06, at, text, size=6.5, ha="left")
    if panel.percent:
        label = "Difference (points)" if panel.is_difference else "Score (%)"
    else:
        label = f"Difference of {panel.unit}" if panel.is_difference else panel.unit
    at = box.x + box.width + 0.42
    _text(axis, at, box.y + box.height / 2, plain_line(label, 60), size=7, rotation=90)


def _square(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def _text(
    axis: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 8,
    ha: str = "center",
    va: str = "center",
    rotation: float = 0,
    color: str = "black",
) -> None:
    """A `$` in a name is a dollar, not the start of a formula."""
    axis.text(x, y, text, fontsize=size, ha=ha, va=va, rotation=rotation, color=color, parse_math=False)
