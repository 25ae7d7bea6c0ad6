"""Paired comparison of models on the same documents: differences, intervals, tests, and what could be seen at
all."""

from nsa_eval.compare._compare import compare
from nsa_eval.compare._types import Comparison, Estimate, ModelInfo, Row
from nsa_eval.compare.intervals import Interval
from nsa_eval.compare.protocol import ProtocolMismatchError
from nsa_eval.compare.tables import to_table

__all__ = [
    "Comparison",
    "Estimate",
    "Interval",
    "ModelInfo",
    "ProtocolMismatchError",
    "Row",
    "compare",
    "to_table",
]
