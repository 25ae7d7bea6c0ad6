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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from nsa_reports._map_figure import PANELS_IN_ROW, STYLE, draw, plain_line
from nsa_reports._png import with_palette
from nsa_reports.panels import Panel, difference_limit, panels_of
from nsa_reports.view import HeatmapGroup

DPI = 220
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
        picture(map(draw, sheets_of(group, limit)), file_name(group.task), group.title or group.task)
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
        pages = map(draw, sheets_of(group, limit))
        combined = save_picture(pages, folder, unused_name(stem, taken), title)
        panels = []
        for index, panel in enumerate(panels_of(group, limit)):
            name = unused_name(f"{stem}-{_panel_slug(group, index)}", taken)
            panels.append(_write(folder, name, _forms(draw([panel]), title)))
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
    return triples + [tuple(alone[at : at + PANELS_IN_ROW]) for at in range(0, len(alone), PANELS_IN_ROW)]


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


def picture(pages: Iterable[Figure], name: str, title: str) -> Picture:
    """Draw a figure of one or more pages as PDF, and as PNG if it has one: the same bytes at every call."""
    forms = _drawn(pages, title, ("png",))
    return Picture(name=name, png=forms.get("png", b""), pdf=forms["pdf"])


def save_picture(pages: Iterable[Figure], folder: Path, name: str, title: str) -> FigureFiles:
    """Write a figure under `folder`/figures: as PDF, and where it has one page as PNG and SVG too."""
    return _write(folder, name, _drawn(pages, title, ("png", "svg")))


def _drawn(pages: Iterable[Figure], title: str, endings: Sequence[str]) -> dict[str, bytes]:
    """Figures as the pages of one PDF with their fonts in it; if there is one, in other forms too."""
    file = io.BytesIO()
    facts = {"CreationDate": None, "Title": plain_line(title, 200)}
    drawn: Figure | None = None
    with _drawing(), PdfPages(file, metadata=facts) as document:
        for number, page in enumerate(pages):  # one at a time: a hundred figures fill the memory
            document.savefig(page, facecolor="white")
            drawn = None if number else page
    forms = {} if drawn is None else _forms(drawn, title, endings)
    if "png" in forms:
        forms["png"] = with_palette(forms["png"])
    return {**forms, "pdf": file.getvalue()}


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
