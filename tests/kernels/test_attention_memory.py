"""The long path never holds anything quadratic."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import nsa_kernels.torch_ as torch_backend
from nsa_kernels import nsa_attention
from nsa_kernels.torch_ import chunked


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest memory block that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.fixture(autouse=True)
def _long_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "MASKED_KEYS_CPU", 0)
    monkeypatch.setattr(chunked, "CPU_ELEMENTS", 1 << 14)
    monkeypatch.setattr(chunked, "TRAIN_RUN", 32)


def _inputs(make_inputs, small, length: int):
    return make_inputs(small, queries=length, batch=1, kv_heads=1, group=2, dim=2, dtype=torch.float32)


def test_largest_intermediate_is_linear(make_inputs, small) -> None:
    sizes = {}
    for length in (512, 1024, 2048):
        inputs = _inputs(make_inputs, small, length)
        with torch.no_grad(), LargestTensor() as largest:
            inputs.run(nsa_attention)
        sizes[length] = largest.elements
    assert sizes[1024] <= 2.1 * sizes[512]
    assert sizes[2048] <= 2.1 * sizes[1024]
    # The scores of all queries over all compressed keys would be far more than that.
    assert sizes[2048] < 2048 * (2048 / small.stride) / 10


def test_training_memory_is_linear(make_inputs, small) -> None:
    kept, peak = {}, {}
    for length in (512, 1024, 2048):
        inputs = _inputs(make_inputs, small, length)
        leaves = [x.requires_grad_() for x in inputs.tensors]
        storages: dict[int, int] = {}

        def remember(x: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda x: x):
            out = nsa_attention(*leaves, geometry=small).out
        with LargestTensor() as largest:
            out.sum().backward()
        kept[length], peak[length] = sum(storages.values()), largest.elements
    assert kept[2048] <= 2.1 * kept[1024] <= 2.1 * 2.1 * kept[512]
    assert peak[2048] <= 2.1 * peak[1024] <= 2.1 * 2.1 * peak[512]
