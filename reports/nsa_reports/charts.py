"""Interactive heatmaps: plotly figures as plain dicts, drawn in the page by plotly.js."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from nsa_reports import _colours
from nsa_reports import _format as fmt
from nsa_reports.panels import Panel

_ROW_HEIGHT = 28
_MIN_HEIGHT = 104  # so that the label of the vertical axis is not cut off
_FRAME = {"l": 46, "r": 6, "t": 6, "b": 44}


def library() -> str:
    """The source of plotly.js, to be inlined once. The Python package ships only the full bundle (4.8 MB)."""
    source: str = get_plotlyjs()
    return source


def heatmap_chart(panel: Panel) -> dict[str, Any]:
    """A heatmap as `{"data": ..., "layout": ...}` made of plain lists and numbers.

    Axes are cell indices with our own tick texts, so every cell has the same size whatever the lengths are.
    No name or other free text goes in: plotly reads a subset of HTML in its labels, and names are not ours to
    trust.
    """
    hover = []
    for depth, row in zip(panel.depths, panel.matrix, strict=True):
        hover.append(
            [
                f"{fmt.tokens(length)} tokens, depth {fmt.depth(depth)} %<br>{panel.cell_label(cell)}"
                for length, cell in zip(panel.lengths, row, strict=True)
            ]
        )
    values = [[None if cell is None else fmt.finite(cell.value) for cell in row] for row in panel.matrix]
    heatmap = go.Heatmap(
        z=[[None if value is None else round(100 * value, 4) for value in row] for row in values],
        text=[[panel.cell_text(cell) for cell in row] for row in panel.matrix],
        texttemplate="%{text}",
        textfont={"size": 11},
        hovertext=hover,
        hoverinfo="text",
        zmin=-100 * panel.limit if panel.is_difference else 0,
        zmax=100 * panel.limit,
        colorscale=_colours.plotly_scale(panel.colours),
        showscale=False,
        xgap=1.5,
        ygap=1.5,
    )
    axis = {"showgrid": False, "zeroline": False, "fixedrange": True, "ticks": "", "automargin": False}
    layout = go.Layout(
        template="none",
        height=max(_ROW_HEIGHT * len(panel.depths), _MIN_HEIGHT) + _FRAME["t"] + _FRAME["b"],
        margin=_FRAME,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        dragmode=False,
        hoverlabel={"align": "left", "bgcolor": "#2b2f34", "font": {"color": "#ffffff", "size": 12}},
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 11},
        xaxis={
            **axis,
            "title": {"text": "Context length (tokens)", "standoff": 6},
            "tickvals": list(range(len(panel.lengths))),
            "ticktext": [fmt.tokens(length) for length in panel.lengths],
            "tickangle": 0,
            "range": [-0.5, len(panel.lengths) - 0.5],
        },
        yaxis={
            **axis,
            "title": {"text": "Needle depth (%)", "standoff": 4},
            "tickvals": list(range(len(panel.depths))),
            "ticktext": [fmt.depth(depth) for depth in panel.depths],
            "range": [len(panel.depths) - 0.5, -0.5],  # depth 0 at the top
        },
    )
    plain: dict[str, Any] = json.loads(go.Figure(data=[heatmap], layout=layout).to_json())
    return plain
