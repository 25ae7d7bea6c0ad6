"""Models compared on the same documents: differences, intervals, tests, and what could have been seen."""

from nsa_eval.compare._compare import compare, labelled
from nsa_eval.compare._of_run import Compared, compare_run
from nsa_eval.compare._stored import read_comparison
from nsa_eval.compare._types import Comparison, Estimate, ModelInfo, Row, Unit
from nsa_eval.compare.intervals import Interval
from nsa_eval.compare.protocol import ProtocolMismatchError
from nsa_eval.compare.tables import to_table

__all__ = [
    "Compared",
    "Comparison",
    "Estimate",
    "Interval",
    "ModelInfo",
    "ProtocolMismatchError",
    "Row",
    "Unit",
    "compare",
    "compare_run",
    "labelled",
    "read_comparison",
    "to_table",
]
