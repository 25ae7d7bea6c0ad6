"""Budgets as an axis: a sweep's scores over what they took, and the least budget that will do."""

from nsa_eval.budgets._lines import Sweep, Variant, sweeps_of
from nsa_eval.budgets._points import Density, Levels, Point, density_of
from nsa_eval.budgets._study import MARGIN, EqualCost, Line, Place, Study, study_of
from nsa_eval.budgets._written import BUDGETS, budgets_csv, budgets_json, write_budgets

__all__ = [
    "BUDGETS",
    "MARGIN",
    "Density",
    "EqualCost",
    "Levels",
    "Line",
    "Place",
    "Point",
    "Study",
    "Sweep",
    "Variant",
    "budgets_csv",
    "budgets_json",
    "density_of",
    "study_of",
    "sweeps_of",
    "write_budgets",
]
