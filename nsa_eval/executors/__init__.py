"""Who answers a run's requests: this process, or workers elsewhere. One file each."""

from nsa_eval.executors._base import Executor, make_executor
from nsa_eval.executors._worker import VariantFacts, Worker

__all__ = ["Executor", "VariantFacts", "Worker", "make_executor"]
