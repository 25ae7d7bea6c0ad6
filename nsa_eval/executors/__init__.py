"""Who answers a run's requests: this process, or workers elsewhere. One file each."""

from nsa_eval.executors._base import Executor, make_executor
from nsa_eval.executors._lm_eval_model import LmEvalExecutor, lm_fingerprint
from nsa_eval.executors._worker import VariantFacts, Worker

__all__ = ["Executor", "LmEvalExecutor", "VariantFacts", "Worker", "lm_fingerprint", "make_executor"]
