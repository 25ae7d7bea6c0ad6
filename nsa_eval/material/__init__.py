"""What the sections of a report are built from: the runs, and everything that was found out about them."""

from nsa_eval.material._figures import Figures, Grid, finite, metric_label
from nsa_eval.material._material import Material
from nsa_eval.material._samples import side_by_side
from nsa_eval.material._units import UNITS, named_unit

__all__ = ["UNITS", "Figures", "Grid", "Material", "finite", "metric_label", "named_unit", "side_by_side"]
