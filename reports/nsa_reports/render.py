"""Turn a `ReportView` into one HTML file that needs nothing else to be read.

Safety: templates escape everything; free text that scripts need travels as escaped JSON and is shown through
`textContent`; a content security policy lets only the two scripts named by hash run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nsa_reports import _colours, _plotly, _tables, samples
from nsa_reports import _format as fmt
from nsa_reports._panels import difference_limit, panels_of
from nsa_reports.figures import GroupFigures, save_figures
from nsa_reports.samples import SampleLimits
from nsa_reports.view import ReportView

_DEFAULT_LIMITS = SampleLimits()


def environment() -> Environment:
    """The Jinja environment of the report: autoescape on, and an undefined name is an error, not a blank."""
    env = Environment(
        loader=PackageLoader("nsa_reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        tokens=fmt.tokens, depth=fmt.depth, count=fmt.count, parameters=fmt.parameters, level=fmt.level
    )
    return env


def to_html(
    view: ReportView,
    *,
    limits: SampleLimits = _DEFAULT_LIMITS,
    figures: Sequence[GroupFigures] = (),
) -> str:
    """The page as a string.

    Args:
        view: what to show.
        limits: how many samples to embed, and how much of each.
        figures: files saved by `save_figures`, one entry per heatmap group, to be linked from the page.
    """
    names = [model.name for model in view.models]
    short = fmt.short_names(names)
    limit = difference_limit(view.heatmaps)
    groups = []
    charts: dict[str, Any] = {}
    for index, group in enumerate(view.heatmaps):
        panels = panels_of(group, limit)
        charts.update({f"g{index}-p{number}": _plotly.figure(panel) for number, panel in enumerate(panels)})
        groups.append(
            {
                "id": f"g{index}",
                "view": group,
                "panels": panels,
                "files": figures[index] if index < len(figures) else None,
                "by_length": _tables.length_table(names, group.by_length),
                "per_cell": _cell_counts(cell.n for grid in group.maps for cell in grid.cells),
                "blanks": any(
                    panel.cell_text(cell) == "" for panel in panels for row in panel.matrix for cell in row
                ),
            }
        )
    tasks = [
        {"id": f"t{index}", "view": task, "table": _tables.build_table(names, task.rows, first="Task")}
        for index, task in enumerate(view.tasks)
    ]
    embedded = samples.embed(view, limits)
    sections = [
        {
            "id": f"g{index}",
            "cells": embedded[index],
            "rows": [f"{fmt.depth(depth)} %" for depth in group.depths],
            "columns": [fmt.tokens(length) for length in group.lengths],
            "charts": len(group.maps) + len(group.differences),
        }
        for index, group in enumerate(view.heatmaps)
    ]
    sections += [
        {"id": f"t{index}", "cells": cells, "charts": 0}
        for index, cells in enumerate(embedded[len(groups) :])
    ]
    shown, total = samples.left_out(embedded)
    # without a grid there is nothing to draw, and 4.8 MB to save
    library = _plotly.library() if groups else ""
    script = _asset("page.js")
    page = environment().get_template("base.html.j2")
    return page.render(
        view=view,
        headline=_tables.build_table(names, view.rows),
        groups=groups,
        tasks=tasks,
        samples_shown=shown,
        samples_total=total,
        difference_limit=round(100 * limit),
        score_gradient=_colours.css_gradient(_colours.SCORE),
        difference_gradient=_colours.css_gradient(_colours.DIFFERENCE),
        bar_width=int(_tables.BAR_WIDTH),
        style=Markup(_asset("page.css")),
        script=Markup(script),
        library=Markup(library),
        policy=_policy([script, library] if library else [script]),
        data=Markup(
            samples.script_json(
                {
                    "models": names,
                    "short": [short[name] for name in names],
                    "sections": sections,
                    "charts": charts,
                }
            )
        ),
    )


def render(view: ReportView, *, out: Path, limits: SampleLimits = _DEFAULT_LIMITS) -> Path:
    """Write the page and, beside it, `figures/*.png` and `figures/*.svg`.

    Args:
        view: what to show.
        out: the HTML file; its folder is made if needed. An old file is replaced in one step.
        limits: how many samples to embed, and how much of each.

    Returns:
        `out`.

    Raises:
        OSError: the folder cannot be written.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figures = save_figures(view, out.parent)
    page = to_html(view, limits=limits, figures=figures)
    partial = out.with_name(f"{out.name}.partial")
    # a lone surrogate in somebody's file name must not lose the report
    partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    os.replace(partial, out)
    return out


def _cell_counts(counts: Iterable[int | None]) -> str:
    """`4`, `3 to 4`, or nothing when unknown."""
    known = sorted({count for count in counts if count})
    if not known:
        return ""
    return str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _asset(name: str) -> str:
    return resources.files("nsa_reports").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which only these scripts run and nothing is loaded from anywhere."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
