"""Figures for papers: every heatmap as PNG and SVG, and all heatmaps of a task in one row.

A page carries the last ones inside; a run's own report has all of them as files beside it.

Text in the SVG files stays text (editable, searchable), and two runs over the same view write the same bytes.
"""

from __future__ import annotations

import dataclasses
import io
import re
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nsa_reports import _format as fmt
from nsa_reports.panels import Panel, difference_limit, panels_of
from nsa_reports.view import HeatmapGroup

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": 8,
    "axes.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "nsa-reports",
}
DPI = 220
_CELL = (0.44, 0.27)  # inches; a 6 x 11 grid of three panels then fits the width of a two-column page
_CELL_MIN = (1.9, 1.5)
_PANELS_IN_ROW = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One figure, drawn."""

    name: str
    """Of its files, without their endings."""
    png: bytes
    svg: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FigureFiles:
    """Where one figure was written, relative to the folder of the report."""

    png: str
    svg: str

    def read(self, folder: Path) -> Picture:
        """The figure again."""
        name = Path(self.png).name.removesuffix(".png")
        return Picture(name=name, png=(folder / self.png).read_bytes(), svg=(folder / self.svg).read_bytes())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupFigures:
    """All figures of one needle task."""

    combined: FigureFiles
    """Every panel in one row."""
    panels: tuple[FigureFiles, ...]
    """One per panel: the models' in the order of the group, then the differences."""


def combined_figures(groups: Sequence[HeatmapGroup]) -> tuple[Picture, ...]:
    """Draw all panels of each grid in one figure.

    Args:
        groups: the grids of a section; their difference maps share one scale.
    """
    limit = difference_limit(groups)
    return tuple(
        picture(_draw(panels_of(group, limit)), file_name(group.task), group.title or group.task)
        for group in groups
    )


def save_figures(
    groups: Sequence[HeatmapGroup], folder: Path, *, taken: set[str] | None = None
) -> tuple[GroupFigures, ...]:
    """Write the figures of grids under `folder`/figures.

    Args:
        groups: the grids of a section; their difference maps share one scale.
        folder: the folder of the run that they belong to.
        taken: names that files of the page have already; those written now are added.

    Returns:
        The files of every group, in order.
    """
    limit = difference_limit(groups)
    taken = set() if taken is None else taken
    written = []
    for group in groups:
        panels = panels_of(group, limit)
        title = group.title or group.task
        stem = file_name(group.task)
        written.append(
            GroupFigures(
                combined=save_picture(_draw(panels), folder, unused_name(stem, taken), title),
                panels=tuple(
                    save_picture(
                        _draw([panel]),
                        folder,
                        unused_name(f"{stem}-{_panel_slug(group, index)}", taken),
                        title,
                    )
                    for index, panel in enumerate(panels)
                ),
            )
        )
    return tuple(written)


def _panel_slug(group: HeatmapGroup, index: int) -> str:
    if index < len(group.maps):
        return file_name(group.maps[index].model)
    pair = group.differences[index - len(group.maps)]
    return f"{file_name(pair.candidate)}-minus-{file_name(pair.baseline)}"


def file_name(name: str) -> str:
    """A file name that is safe anywhere: lower-case ASCII letters, digits, `_`, `.` and `-`, at most 60."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_.]+", "-", plain)[:60].strip("-.") or "figure"


def unused_name(stem: str, taken: set[str]) -> str:
    """A file name that no other figure of the page has, added to those taken."""
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add(name)
    return name


def plain_line(text: str, limit: int) -> str:
    """One line of characters that XML allows, with a long middle cut out."""
    return fmt.shorten(" ".join("".join(char if char.isprintable() else " " for char in text).split()), limit)


def _draw(panels: Sequence[Panel]) -> Figure:
    """Panels in one row, or scores above differences when there are more than three."""
    columns = max(len(panels[0].lengths) * _CELL[0], _CELL_MIN[0])
    rows = max(len(panels[0].depths) * _CELL[1], _CELL_MIN[1])
    scores = [panel for panel in panels if not panel.is_difference]
    differences = [panel for panel in panels if panel.is_difference]
    kinds = [kind for kind in (scores, differences) if kind]
    lines = kinds if len(panels) > _PANELS_IN_ROW else [list(panels)]
    across = max(map(len, lines))
    bars = 0.6 * (len(kinds) if len(lines) == 1 else 1)
    with mpl.rc_context(STYLE):
        size = (across * (columns + 0.2) + bars + 0.45, len(lines) * (rows + 0.85))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(lines), across, squeeze=False, sharey=True)
        for line, axes in zip(lines, grid, strict=True):
            for axis in axes[len(line) :]:
                axis.set_axis_off()  # an empty place keeps the panels of both rows in line
            for index, (axis, panel) in enumerate(zip(axes, line, strict=False)):
                _panel(axis, panel, labelled=index == 0, room=int(columns * 16))
            for kind in (False, True):
                alike = [pair for pair in zip(axes, line, strict=False) if pair[1].is_difference is kind]
                if alike:
                    beside = [axis for axis, _ in alike] if len(lines) == 1 else list(axes)
                    _colour_bar(figure, beside, alike[0][1])
    return figure


def _panel(axis: Axes, panel: Panel, *, labelled: bool, room: int) -> None:
    for row, cells in enumerate(panel.matrix):
        for column, cell in enumerate(cells):
            value = None if cell is None else fmt.finite(cell.value)
            if value is None:
                continue
            # rectangles, not an image: they stay vectors in the SVG, and a missing cell is simply not drawn
            axis.add_patch(
                Rectangle(
                    (column - 0.5, row - 0.5),
                    1,
                    1,
                    facecolor=panel.colour(value),
                    edgecolor="white",
                    linewidth=0.8,
                )
            )
            axis.text(
                column,
                row,
                panel.cell_text(cell),
                ha="center",
                va="center",
                fontsize=7,
                color=panel.ink(value),
            )
    axis.set_xlim(-0.5, len(panel.lengths) - 0.5)
    axis.set_ylim(len(panel.depths) - 0.5, -0.5)  # depth 0 at the top
    axis.set_xticks(range(len(panel.lengths)), [fmt.tokens(length) for length in panel.lengths])
    axis.set_yticks(range(len(panel.depths)), [fmt.depth(depth) for depth in panel.depths])
    axis.tick_params(length=0)
    axis.set_xlabel("Context length (tokens)")
    if labelled:
        axis.set_ylabel("Needle depth (%)")
    axis.set_title(
        plain_line(panel.title, room), fontsize=8.5, parse_math=False
    )  # a `$` in a name is a dollar
    for side in axis.spines.values():
        side.set_visible(False)


def _colour_bar(figure: Figure, axes: Sequence[Axes], panel: Panel) -> None:
    """One colour bar for all panels that share a scale."""
    bar = figure.colorbar(ScalarMappable(*_scale(panel)), ax=list(axes), pad=0.015, aspect=28, fraction=0.06)
    if panel.percent:
        label = "Difference (points)" if panel.is_difference else "Score (%)"
    else:
        label = f"Difference of {panel.unit}" if panel.is_difference else panel.unit
    bar.set_label(plain_line(label, 60), fontsize=7)
    bar.ax.tick_params(labelsize=6.5, length=2, width=0.5)
    bar.outline.set_linewidth(0.4)


def _scale(panel: Panel) -> tuple[Normalize, LinearSegmentedColormap]:
    low, high = (end * (100 if panel.percent else 1) for end in panel.bounds)
    return Normalize(low, high), LinearSegmentedColormap.from_list("panel", panel.colours)


def picture(figure: Figure, name: str, title: str) -> Picture:
    """Draw a figure in both forms: the same bytes at every call."""
    png, svg = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # names may be in any script
        figure.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
        metadata = {"Date": None, "Title": plain_line(title, 200)}
        figure.savefig(svg, format="svg", facecolor="white", metadata=metadata)
    return Picture(name=name, png=png.getvalue(), svg=svg.getvalue())


def save_picture(figure: Figure, folder: Path, name: str, title: str) -> FigureFiles:
    """Write both forms of a figure under `folder`/figures."""
    drawn = picture(figure, name, title)
    # ending added by hand: with_suffix would eat the `.1` of a name such as llama-3.1
    files = FigureFiles(png=f"figures/{name}.png", svg=f"figures/{name}.svg")
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / files.png).write_bytes(drawn.png)
    (folder / files.svg).write_bytes(drawn.svg)
    return files
