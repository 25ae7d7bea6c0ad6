"""The kernel benchmark: dense attention and NSA side by side on one GPU.

`python -m nsa_kernels.bench` needs torch and triton alone. `nsa-eval bench kernels` draws a figure too.
"""

from nsa_kernels.bench.counts import Ceilings
from nsa_kernels.bench.measure import measure, require_gpu
from nsa_kernels.bench.result import Measurement
from nsa_kernels.bench.settings import PARTS, Settings, parse_counts, parse_lengths, parse_names
from nsa_kernels.bench.tables import Sheet, heading, sheets, to_text

__all__ = [
    "PARTS",
    "Ceilings",
    "Measurement",
    "Settings",
    "Sheet",
    "heading",
    "measure",
    "parse_counts",
    "parse_lengths",
    "parse_names",
    "require_gpu",
    "sheets",
    "to_text",
]
