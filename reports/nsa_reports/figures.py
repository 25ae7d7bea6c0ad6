"""Figures for papers: every heatmap as PNG and SVG, and all heatmaps of a task as PDF, one beside the other.

A page carries the last ones inside; a run's own report has all of them as files beside it.

Text in the SVG files stays text (editable, searchable), and two runs over the same view write the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from nsa_reports import _format as fmt
from nsa_reports._png import with_palette
from nsa_reports.panels import Panel, difference_limit, panels_of
from nsa_reports.view import HeatmapGroup

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": 8,
    "axes.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "nsa-reports",
    "pdf.fonttype": 42,  # TrueType: publishers refuse type 3
}
DPI = 220
_CELL = (0.44, 0.27)  # inches; a 6 x 11 grid of three panels then fits the width of a two-column page
_CELL_MIN = (1.9, 1.5)
_PANELS_IN_ROW = 3


_TOGETHER = 4
"""Models whose maps and differences fit into one figure; with more each comparison has a page of its own."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One figure, drawn."""

    name: str
    """Of its files, without their endings."""
    png: bytes
    """Empty where the figure has several pages."""
    pdf: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FigureFiles:
    """Where one figure was written, relative to the folder of the report; empty for a form that it hasn't."""

    png: str = ""
    svg: str = ""
    pdf: str = ""

    def read(self, folder: Path) -> Picture:
        """The figure again."""
        return Picture(
            name=Path(self.pdf).name.removesuffix(".pdf"),
            png=(folder / self.png).read_bytes() if self.png else b"",
            pdf=(folder / self.pdf).read_bytes(),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupFigures:
    """All figures of one needle task."""

    combined: FigureFiles
    """Every panel in one figure, or a page for each comparison."""
    panels: tuple[FigureFiles, ...]
    """One per panel, as PNG and SVG: the models' in the order of the group, then the differences."""


def combined_figures(groups: Sequence[HeatmapGroup]) -> tuple[Picture, ...]:
    """Draw all panels of each grid in one figure, or in one of several pages.

    Args:
        groups: the grids of a section; their difference maps share one scale.
    """
    limit = difference_limit(groups)
    return tuple(
        picture(list(map(_draw, sheets_of(group, limit))), file_name(group.task), group.title or group.task)
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
        title = group.title or group.task
        stem = file_name(group.task)
        pages = [_draw(panels) for panels in sheets_of(group, limit)]
        combined = save_picture(pages, folder, unused_name(stem, taken), title)
        panels = []
        for index, panel in enumerate(panels_of(group, limit)):
            name = unused_name(f"{stem}-{_panel_slug(group, index)}", taken)
            panels.append(_write(folder, name, _forms(_draw([panel]), title)))
        written.append(GroupFigures(combined=combined, panels=tuple(panels)))
    return tuple(written)


def sheets_of(group: HeatmapGroup, limit: float) -> list[tuple[Panel, ...]]:
    """The panels of a grid by the figures that they share.

    A few models stand in one. A figure of many can't be read: then a candidate, its baseline and their
    difference share one, and models that aren't compared are three to a figure.

    Args:
        group: The grid.
        limit: As in `panels_of`.
    """
    panels = panels_of(group, limit)
    if len(group.maps) <= _TOGETHER:
        return [panels]
    maps = {grid.model: panel for grid, panel in zip(group.maps, panels, strict=False)}
    gaps = zip(group.differences, panels[len(maps) :], strict=True)
    triples = [(maps[gap.candidate], maps[gap.baseline], panel) for gap, panel in gaps]
    compared = {name for gap in group.differences for name in (gap.candidate, gap.baseline)}
    alone = [panel for model, panel in maps.items() if model not in compared]
    return triples + [
        tuple(alone[at : at + _PANELS_IN_ROW]) for at in range(0, len(alone), _PANELS_IN_ROW)
    ]


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
        _lay_out(figure)
    return figure


def _lay_out(figure: Figure) -> None:
    """Place everything once: otherwise each form that is saved draws all of it twice, to measure first."""
    engine = figure.get_layout_engine()
    assert engine is not None, "figures are made with one"
    with _drawing():
        engine.execute(figure)
    figure.set_layout_engine("none")


def _panel(axis: Axes, panel: Panel, *, labelled: bool, room: int) -> None:
    squares, colours = [], []
    for row, cells in enumerate(panel.matrix):
        for column, cell in enumerate(cells):
            value = None if cell is None else fmt.finite(cell.value)
            if value is None:
                continue
            left, top, right, bottom = column - 0.5, row - 0.5, column + 0.5, row + 0.5
            squares.append([(left, top), (right, top), (right, bottom), (left, bottom)])
            colours.append(panel.colour(value))
            text = axis.text(
                column,
                row,
                panel.cell_text(cell),
                ha="center",
                va="center",
                fontsize=7,
                color=panel.ink(value),
            )
            text.set_in_layout(False)  # measuring each of them takes most of the time, and all are inside
    # squares, not an image: they stay vectors in SVG and PDF, and a missing cell is simply not drawn
    drawn = PolyCollection(squares, facecolors=colours, edgecolors="white", linewidths=0.8)
    drawn.set_in_layout(False)
    axis.add_collection(drawn, autolim=False)
    axis.set_xlim(-0.5, len(panel.lengths) - 0.5)
    axis.set_ylim(len(panel.depths) - 0.5, -0.5)  # depth 0 at the top
    axis.set_xticks(range(len(panel.lengths)), [fmt.tokens(length) for length in panel.lengths])
    axis.set_yticks(range(len(panel.depths)), [fmt.depth(depth) for depth in panel.depths])
    axis.tick_params(length=0)
    axis.set_xlabel("Context length (tokens)")
    if labelled:
        axis.set_ylabel("Needle depth (%)")
    axis.set_title(
        title_lines(panel.title, room), fontsize=8.5, parse_math=False
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


def picture(pages: Sequence[Figure], name: str, title: str) -> Picture:
    """Draw a figure of one or more pages as PDF, and as PNG if it has one: the same bytes at every call."""
    png = with_palette(_forms(pages[0], title, ("png",))["png"]) if len(pages) == 1 else b""
    return Picture(name=name, png=png, pdf=_pdf(pages, title))


def save_picture(pages: Sequence[Figure], folder: Path, name: str, title: str) -> FigureFiles:
    """Write a figure under `folder`/figures: as PDF, and where it has one page as PNG and SVG too."""
    forms = _forms(pages[0], title) if len(pages) == 1 else {}
    if forms:
        forms["png"] = with_palette(forms["png"])
    return _write(folder, name, {**forms, "pdf": _pdf(pages, title)})


def _forms(figure: Figure, title: str, endings: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """A figure as PNG and SVG, by their endings."""
    facts: dict[str, dict[str, str | None]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Title": plain_line(title, 200)},
    }
    drawn = {}
    with _drawing():
        for ending in endings:
            file = io.BytesIO()
            figure.savefig(file, format=ending, dpi=DPI, facecolor="white", metadata=facts[ending])
            drawn[ending] = file.getvalue()
    return drawn


def _pdf(pages: Sequence[Figure], title: str) -> bytes:
    """Figures as the pages of one PDF, with their fonts in it."""
    file = io.BytesIO()
    facts = {"CreationDate": None, "Title": plain_line(title, 200)}
    with _drawing(), PdfPages(file, metadata=facts) as document:
        for page in pages:
            document.savefig(page, facecolor="white")
    return file.getvalue()


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Matplotlib in the style of all figures; names may be in any script."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _write(folder: Path, name: str, forms: Mapping[str, bytes]) -> FigureFiles:
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    # ending added by hand: with_suffix would eat the `.1` of a name such as llama-3.1
    paths = {ending: f"figures/{name}.{ending}" for ending in forms}
    for ending, content in forms.items():
        (folder / paths[ending]).write_bytes(content)
    return FigureFiles(**paths)
