"""Reads run directories: lm-eval's results_*.json and samples_*.jsonl, whoever wrote them."""

from nsa_eval.results._groups import outline, outlined
from nsa_eval.results._load import load_run
from nsa_eval.results._origins import Origin, origin_of
from nsa_eval.results._samples import of_another_length
from nsa_eval.results._types import GroupResult, ModelRun, Run, Sample, TaskResult, at_position

__all__ = [
    "GroupResult",
    "ModelRun",
    "Origin",
    "Run",
    "Sample",
    "TaskResult",
    "at_position",
    "load_run",
    "of_another_length",
    "origin_of",
    "outline",
    "outlined",
]
