"""Curves over position as figures for papers: values and paired differences, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nsa_reports import _format as fmt
from nsa_reports._map_figure import STYLE, plain_line
from nsa_reports.charts import COLOURS, colour_and_dashes
from nsa_reports.figures import Picture, file_name, picture, save_picture, unused_name
from nsa_reports.view import CurveGroup, CurvePoint

_PANEL = (2.9, 2.2)
"""Inches: two fit the width of a two-column page."""
_LINES = (
    ("#1f5a9e", "-", "o"),
    ("#b35806", "--", "s"),
    ("#1b7f5c", ":", "^"),
    ("#8f3a94", "-.", "D"),
    ("#5a5f66", (0, (6, 2)), "v"),
    ("#b3261e", (0, (2, 2)), "x"),
)
"""Colour, dashes and mark: told apart in grey print too. As many as the page has."""
assert len(_LINES) == COLOURS


def curve_pictures(groups: Sequence[CurveGroup]) -> tuple[Picture, ...]:
    """Draw each group: its models' curves, and the differences beside them."""
    return tuple(picture([_draw(group)], _name(group), _title(group)) for group in groups)


def save_curve_figures(
    groups: Sequence[CurveGroup], folder: Path, *, taken: set[str] | None = None
) -> tuple[Picture, ...]:
    """Write the same under `folder`/figures.

    Args:
        groups: the curves of a section.
        folder: the folder of the run that they belong to.
        taken: names that files of the page have already; those written now are added.

    Returns:
        What was written, in order.
    """
    taken = set() if taken is None else taken
    return tuple(
        save_picture([_draw(group)], folder, unused_name(_name(group), taken), _title(group)).read(folder)
        for group in groups
    )


def _name(group: CurveGroup) -> str:
    return file_name(f"{group.task}-{group.metric}")


def _title(group: CurveGroup) -> str:
    return f"{group.task}: {group.metric} by {group.over}"


def _draw(group: CurveGroup) -> Figure:
    pairs = [name for curve in group.differences for name in (curve.candidate, curve.baseline)]
    short = fmt.short_names([*(curve.model for curve in group.curves), *pairs])
    styles = {curve.model: index for index, curve in enumerate(group.curves)}
    panels = 1 + bool(group.differences)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(panels * _PANEL[0] + 0.2, _PANEL[1]), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for curve in group.curves:
            _line(axes[0], curve.points, plain_line(short[curve.model], 30), styles[curve.model])
        if group.threshold is not None:
            axes[0].axhline(group.threshold, color="#555555", linewidth=0.6, linestyle=":")
        _finish(
            axes[0],
            group.x_label,
            f"{group.metric} ({group.unit})",
            [p.end for c in group.curves for p in c.points],
        )
        if group.differences:
            axes[1].axhline(0.0, color="black", linewidth=0.6)
            for difference in group.differences:
                name = f"{short[difference.candidate]} {fmt.MINUS} {short[difference.baseline]}"
                style = styles.get(difference.candidate, 0)
                _line(axes[1], difference.points, plain_line(name, 60), style)
            ends = [point.end for difference in group.differences for point in difference.points]
            _finish(axes[1], group.x_label, f"Difference ({group.unit})", ends)
    return figure


def _line(axis: Axes, points: Sequence[CurvePoint], name: str, style: int) -> None:
    colour, kind = colour_and_dashes(style)
    (ink, _, _), (_, dashes, mark) = _LINES[colour], _LINES[kind]
    ends = [point.end for point in points]
    axis.plot(
        ends,
        [point.value for point in points],
        label=name,
        color=ink,
        linestyle=dashes,
        marker=mark,
        markersize=3,
        linewidth=1.1,
    )
    missing = float("nan")
    axis.fill_between(
        ends,
        [missing if point.low is None else point.low for point in points],
        [missing if point.high is None else point.high for point in points],
        color=ink,
        alpha=0.15,
        linewidth=0,
    )


def _finish(axis: Axes, x_label: str, label: str, ends: Sequence[int]) -> None:
    shown = sorted(set(ends))
    axis.set_xscale("log", base=2)
    axis.set_xticks(shown, [fmt.tokens(end) for end in shown])
    axis.minorticks_off()
    axis.tick_params(labelsize=6.5)
    axis.grid(visible=True, linewidth=0.3, color="#dddddd")
    axis.set_xlabel(x_label[:1].upper() + x_label[1:])
    axis.set_ylabel(plain_line(label, 60))
    legend = axis.legend(fontsize=6.5, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a `$` in a name is a dollar
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
