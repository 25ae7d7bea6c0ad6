"""The evaluation engine: an lm-eval `LM` for long contexts, which lm-eval knows as `nsa-eval`."""

from nsa_eval.engine._building import register
from nsa_eval.engine._engine import Engine
from nsa_eval.engine._reader import NonFiniteLogitsError

__all__ = ["Engine", "NonFiniteLogitsError"]

register(Engine)
