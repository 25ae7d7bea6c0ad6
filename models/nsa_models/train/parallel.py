"""Several processes that train one model: who they are, and the sum of their gradients.

Data-parallel training in its plainest form: each process reads its rows of the step's batch, the gradients
are summed once a step in one flat buffer, and every process makes the same optimizer step. For models of this
size that sum takes far less time than the backward pass, so torch's DistributedDataParallel, which sums piece
by piece meanwhile, gains nothing; and what is summed here is the gradient of the whole batch's mean loss,
whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """This process and its fellows."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and lines."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place; all end with the same bits."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        return bool(self.sum_(torch.tensor([float(flag)], device=self.device)).item())

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    def share(self, rows: int) -> range:
        """This process's rows of so many: neighbours, as even as can be; none where there are too few."""
        return range(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """The group that `torchrun` started this process in, or this process alone on its first GPU or CPU.

    Raises:
        ValueError: More processes on this host than GPUs.
    """
    local, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if gpus and local >= gpus:
        raise ValueError(
            f"process {local} of this host has no GPU, there are {gpus}: --nproc-per-node {gpus}"
        )
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if size == 1:
        yield Group(device=device)
        return
    dist.init_process_group("nccl" if gpus else "gloo", device_id=device if gpus else None)
    try:
        yield Group(rank=dist.get_rank(), size=size, device=device)
    finally:
        dist.destroy_process_group()


class FlatGradients:
    """All gradients of a model in one buffer, of which each parameter's `grad` is a view.

    Backward passes add to it. A parameter that a step doesn't reach has a gradient of zero, so that the
    optimizer does the same with any number of processes.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, beside: int) -> None:
        """Make the buffer; `beside` further numbers, such as losses, are summed along."""
        held = list(parameters)
        sizes = [parameter.numel() for parameter in held]
        self._flat = torch.zeros(sum(sizes) + beside, device=held[0].device, dtype=held[0].dtype)
        self.gradients, self.beside = self._flat.split([sum(sizes), beside])
        for parameter, piece in zip(held, self.gradients.split(sizes), strict=True):
            parameter.grad = piece.view(parameter.shape)

    def clear(self) -> None:
        """Set all to zero, before a step."""
        self._flat.zero_()

    def sum_(self, group: Group) -> None:
        """Sum over the processes."""
        group.sum_(self._flat)

    def clip_(self, most: float) -> Tensor:
        """Scale the gradient to a norm of at most `most`; returns its norm before."""
        norm: Tensor = self.gradients.norm()
        self.gradients.mul_((most / (norm + 1e-6)).clamp(max=1.0))
        return norm
