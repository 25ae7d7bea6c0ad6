"""Reads run directories: lm-eval's results_*.json and samples_*.jsonl, whoever wrote them."""

from nsa_eval.results._load import load_run
from nsa_eval.results._types import ModelRun, Run, Sample, TaskResult

__all__ = ["ModelRun", "Run", "Sample", "TaskResult", "load_run"]
