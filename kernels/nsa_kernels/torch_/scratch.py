"""Memory for the intermediates of a run, used again by the next run."""

import math

import torch
from torch import Tensor


class Scratch:
    """Named buffers, to be passed as `out=`.

    The C library gives large freed blocks back to the system, so that each run would fault in every page of
    its intermediates anew: at 64k tokens that nearly doubled the time. Autograd keeps intermediates and
    forbids `out=`; a disabled scratch answers None, which leaves the allocation to torch.
    """

    def __init__(self, *, enabled: bool) -> None:
        """An empty store; `enabled=False` answers None throughout."""
        self._enabled = enabled
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        """A tensor of this shape, with the dtype and device of `like`, holding whatever was there.

        A second call with the same name gives the same memory: the first result is then lost.
        """
        if not self._enabled:
            return None
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=like.dtype, device=like.device)
            self._buffers[name] = buffer
        return buffer[:size].view(shape)
