"""Reads run directories: lm-eval's results_*.json and samples_*.jsonl, whoever wrote them."""

from nsa_eval.results._groups import outline, outlined
from nsa_eval.results._load import load_run
from nsa_eval.results._origins import Origin, origin_of
from nsa_eval.results._samples import cut_by_task, of_another_length
from nsa_eval.results._types import GroupResult, ModelRun, Run, Sample, TaskResult

__all__ = [
    "GroupResult",
    "ModelRun",
    "Origin",
    "Run",
    "Sample",
    "TaskResult",
    "cut_by_task",
    "load_run",
    "of_another_length",
    "origin_of",
    "outline",
    "outlined",
]
