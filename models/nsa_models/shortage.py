"""Whether an error says that a device has too little memory, whoever ran into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What allocates beside PyTorch's own allocator has no error class: a CUDA context, the handles and workspaces
# of cuBLAS and cuDNN, a kernel's code as Triton loads it, a graph's memory; and memory of the host.
_SAYINGS = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "MPS backend out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had too little memory for what was asked of it.

    `torch.OutOfMemoryError` is what PyTorch's allocator raises. Other libraries' failures come as a plain
    RuntimeError (since torch 2.8 `torch.AcceleratorError`) that only its text tells apart. Beside other
    processes on a GPU these are as likely: the allocator holds what it has, and the next handle finds none.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


@contextmanager
def one_kind_of_shortage() -> Iterator[None]:
    """Whatever a lack of memory is raised as within is raised as `torch.OutOfMemoryError`.

    Who makes batches smaller or tells the user then has one class to catch.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) and not isinstance(error, torch.OutOfMemoryError):
            raise torch.OutOfMemoryError(str(error)) from error
        raise
