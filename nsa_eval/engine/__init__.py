"""The evaluation engine: an lm-eval `LM` for long contexts, which lm-eval knows as `nsa-eval`."""

from nsa_eval.engine._answerer import Answerer
from nsa_eval.engine._building import register
from nsa_eval.engine._engine import Engine
from nsa_eval.engine._foreign import ForeignAnswerer, ForeignEngine
from nsa_eval.engine._loaded import ModelFacts
from nsa_eval.engine._prompts import Origin
from nsa_eval.engine._reader import NonFiniteLogitsError
from nsa_eval.engine._requests import Emit, Naming, Request

__all__ = [
    "Answerer",
    "Emit",
    "Engine",
    "ForeignAnswerer",
    "ForeignEngine",
    "ModelFacts",
    "Naming",
    "NonFiniteLogitsError",
    "Origin",
    "Request",
]

register(Engine)
