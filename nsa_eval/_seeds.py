"""The process's random generators, set as lm-eval's `simple_evaluate` does."""

from __future__ import annotations

import random


def set_seeds(python: int | None, numpy: int | None, torch: int | None) -> None:
    """Seed python's, numpy's and torch's generators; None leaves one as it is."""
    import numpy as np
    from lm_eval.utils import set_torch_seed

    if python is not None:
        random.seed(python)
    if numpy is not None:
        np.random.seed(numpy)
    if torch is not None:
        set_torch_seed(torch)
