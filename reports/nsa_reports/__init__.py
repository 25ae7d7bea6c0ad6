"""HTML reports and paper figures from plain data; knows nothing of how the data was made."""

from nsa_reports.render import render, to_html
from nsa_reports.samples import SampleLimits
from nsa_reports.view import (
    AuditNote,
    Cell,
    Comparison,
    DifferenceMap,
    Estimate,
    HeatmapGroup,
    LengthRow,
    ModelCard,
    ModelMap,
    Provenance,
    Reply,
    ReportView,
    Sample,
    ScoreRow,
    TaskSection,
)

__all__ = [
    "AuditNote",
    "Cell",
    "Comparison",
    "DifferenceMap",
    "Estimate",
    "HeatmapGroup",
    "LengthRow",
    "ModelCard",
    "ModelMap",
    "Provenance",
    "Reply",
    "ReportView",
    "Sample",
    "SampleLimits",
    "ScoreRow",
    "TaskSection",
    "render",
    "to_html",
]
