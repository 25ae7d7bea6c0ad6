"""Line figures with logarithmic axes: times over lengths, one panel beside the other, as PNG and SVG."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from nsa_reports import _format as fmt
from nsa_reports._map_figure import STYLE
from nsa_reports.figures import DPI

_COLOURS = ("#b35806", "#1f5a9e")  # the two ends of the difference map: dense and sparse read as there
_PANEL = (2.5, 2.3)  # inches; three or four fit the width of a two-column page


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line."""

    name: str
    points: tuple[tuple[float, float], ...]
    """(x, y), both positive."""
    labels: tuple[str, ...] = ()
    """Texts under the points, or none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CurvePanel:
    """One pair of axes."""

    title: str
    x_label: str
    """Of a number of tokens: the ticks are 8k, 64k."""
    y_label: str
    curves: tuple[Curve, ...]
    """Two at most: dense first."""


def save_curves(panels: Sequence[CurvePanel], stem: Path, *, caption: str = "") -> tuple[Path, Path]:
    """Draws the panels in one row.

    Args:
        panels: One or more, each with a curve that has points.
        stem: Path of both files without their endings; its folder is made.
        caption: A line of small print under the panels: the machine, say.

    Returns:
        The PNG and the SVG file.

    Raises:
        ValueError: There is nothing to draw.
    """
    drawn = [panel for panel in panels if any(curve.points for curve in panel.curves)]
    if not drawn:
        raise ValueError("no curve has a point")
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg"))
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(len(drawn) * _PANEL[0] + 0.2, _PANEL[1] + 0.25), layout="constrained")
        FigureCanvasAgg(figure)
        for axis, panel in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
            _draw(axis, panel)
        if caption:
            figure.supxlabel(caption, fontsize=6, color="#555555", parse_math=False)
        figure.savefig(png, dpi=DPI, facecolor="white", metadata={"Software": None})
        figure.savefig(svg, facecolor="white", metadata={"Date": None, "Title": caption or panels[0].title})
    return png, svg


def _draw(axis: Axes, panel: CurvePanel) -> None:
    ticks: set[float] = set()
    for curve, colour in zip(panel.curves, _COLOURS, strict=False):
        if not curve.points:
            continue
        xs, ys = zip(*curve.points, strict=True)
        ticks.update(xs)
        axis.plot(
            xs,
            ys,
            label=curve.name,
            color=colour,
            marker="o",
            markersize=3.5,
            linewidth=1.2,
        )
        for (x, y), text in zip(curve.points, curve.labels, strict=False):
            others = [dict(other.points).get(x, y) for other in panel.curves if other is not curve]
            axis.annotate(
                text,
                (x, y),
                xytext=(0, 4 if any(other < y for other in others) else -9),  # away from a curve below
                textcoords="offset points",
                ha="center",
                fontsize=6,
                parse_math=False,
            )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    shown = sorted(ticks)
    axis.set_xticks(shown, [fmt.tokens(int(x)) for x in shown])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.margins(0.1, 0.18)
    axis.grid(visible=True, linewidth=0.3, color="#dddddd")
    axis.set_xlabel(panel.x_label)
    axis.set_ylabel(panel.y_label)
    axis.set_title(panel.title, fontsize=8.5, parse_math=False)
    axis.legend(fontsize=6.5, frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
