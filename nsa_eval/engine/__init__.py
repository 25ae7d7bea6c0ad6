"""The evaluation engine: an lm-eval `LM` for long contexts."""

from nsa_eval.engine._engine import Engine
from nsa_eval.engine._reader import NonFiniteLogitsError

__all__ = ["Engine", "NonFiniteLogitsError"]
