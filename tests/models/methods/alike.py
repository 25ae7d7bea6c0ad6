"""What tests of methods by kernels hold to the references, and that nothing large is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nsa_models.methods import Attached

CLOSE = {"rtol": 2e-4, "atol": 2e-4}


def same(one: tuple[list[Tensor], Attached], two: tuple[list[Tensor], Attached]) -> None:
    """Equal logits, but for rounding, and equal counts."""
    for found, expected in zip(one[0], two[0], strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert one[1].reads.prefill == two[1].reads.prefill
    assert one[1].reads.decode == two[1].reads.decode


def read_by_masks(*_: object) -> Tensor:
    """In place of a reference that isn't to be asked."""
    raise AssertionError("a mask was asked for")


class Largest(TorchDispatchMode):
    """Notes the numbers of the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.numel())
        return out
