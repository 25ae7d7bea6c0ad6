"""HTML reports and paper figures from plain data; knows nothing of how the data was made."""

from nsa_reports.charts import Chart, Key, charts_of, keys_of
from nsa_reports.choices import ChoicePicture, choice_picture, shades_in_words
from nsa_reports.frontier import CostCurve, Frontier, Spot, frontier_of
from nsa_reports.page import ALL, Anchor, Page, SectionData, SectionView
from nsa_reports.panels import Panel, difference_limit, panels_of
from nsa_reports.render import render, to_html
from nsa_reports.samples import SampleLimits
from nsa_reports.scatter import CostPoint, Scatter, figure, scatter_of
from nsa_reports.view import (
    Cell,
    CurveGroup,
    CurvePoint,
    DifferenceCurve,
    DifferenceMap,
    Extract,
    HeatmapGroup,
    LengthRow,
    ModelCurve,
    ModelMap,
    Reply,
    ScoreRow,
    ShownDifference,
    ShownSample,
    ShownScore,
)

__all__ = [
    "ALL",
    "Anchor",
    "Cell",
    "Chart",
    "ChoicePicture",
    "CostCurve",
    "CostPoint",
    "CurveGroup",
    "CurvePoint",
    "DifferenceCurve",
    "DifferenceMap",
    "Extract",
    "Frontier",
    "HeatmapGroup",
    "Key",
    "LengthRow",
    "ModelCurve",
    "ModelMap",
    "Page",
    "Panel",
    "Reply",
    "SampleLimits",
    "Scatter",
    "ScoreRow",
    "SectionData",
    "SectionView",
    "ShownDifference",
    "ShownSample",
    "ShownScore",
    "Spot",
    "charts_of",
    "choice_picture",
    "difference_limit",
    "figure",
    "frontier_of",
    "keys_of",
    "panels_of",
    "render",
    "scatter_of",
    "shades_in_words",
    "to_html",
]
