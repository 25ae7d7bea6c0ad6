"""What the sections of a report are built from: the runs, and everything that was found out about them."""

from nsa_eval.material._costs import (
    CostFigures,
    conditions_in_words,
    cost_figures,
    measured_together,
)
from nsa_eval.material._figures import Figures, Grid, finite, metric_label
from nsa_eval.material._material import Material
from nsa_eval.material._samples import side_by_side
from nsa_eval.material._units import UNITS, named_unit

__all__ = [
    "UNITS",
    "CostFigures",
    "Figures",
    "Grid",
    "Material",
    "conditions_in_words",
    "cost_figures",
    "finite",
    "measured_together",
    "metric_label",
    "named_unit",
    "side_by_side",
]
