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

    def softmax_(self, logits: Tensor) -> Tensor:
        """Softmax over the last dimension, in float32 at least, in the dtype of the logits.

        Written over the logits when the store is enabled, so that a run's scores are in the cache once.
        """
        if logits.dtype not in (torch.float32, torch.float64):
            return torch.softmax(logits, -1, dtype=torch.float32).to(logits.dtype)
        return torch.softmax(logits, -1, out=logits) if self._enabled else torch.softmax(logits, -1)
