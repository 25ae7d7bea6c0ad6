"""Models compared on the same documents: differences, intervals, tests, and what could have been seen."""

from nsa_eval.comparison._compare import compare, labelled
from nsa_eval.comparison._format import verdict_words
from nsa_eval.comparison._mismatch import ProtocolMismatchError
from nsa_eval.comparison._of_run import Compared, compare_run
from nsa_eval.comparison._stored import read_comparison
from nsa_eval.comparison._tables import to_table
from nsa_eval.comparison._types import TOO_FEW, VERDICTS, Comparison, Estimate, ModelInfo, Row, Unit
from nsa_eval.comparison.intervals import Interval

__all__ = [
    "TOO_FEW",
    "VERDICTS",
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
    "verdict_words",
]
