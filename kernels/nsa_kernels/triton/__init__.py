"""The `triton` backend: NSA kernels for CUDA GPUs; with TRITON_INTERPRET=1 they run on a CPU, for tests.

One stage a file; `function` puts them together, forward and backward, and `decode` is a single token against a cache.
"""

import os

import torch

from nsa_kernels.triton.function import attention, decode

__all__ = ["attention", "decode", "unavailable"]


def unavailable() -> str | None:
    """Why these kernels cannot run on this machine, or None."""
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return "it needs a CUDA device"
