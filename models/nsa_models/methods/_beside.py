"""What a method knows of a layer's cached keys, kept beside them from one decode step to the next.

Attention functions see keys and no cache, and caches are copied, joined, reordered and cut by others. So
nothing travels with them. What is kept names the memory that its keys lay in and where each row ended, and a
step uses it whose keys grew out of that memory by one token a row, and no other. Whoever copies or reorders
rows makes new memory, and whoever cuts them moves their ends: what was known is made anew from the keys then.
So it is never another cache's, and at worst slow. Keys that somebody writes over in place, past the model and
its cache, aren't noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from nsa_models.methods._placement import Placement

T = TypeVar("T")


class Allocation:
    """The memory that a tensor lies in, which isn't kept by this; equal for tensors that begin at one place.

    As long as it exists no other memory is taken for it, be it at the same address.
    """

    __slots__ = ("_address", "_storage")

    def __init__(self, tensor: Tensor) -> None:
        """That of `tensor`."""
        self._storage = StorageWeakRef(tensor.untyped_storage())
        self._address = tensor.data_ptr()

    def __eq__(self, other: object) -> bool:
        """Whether it is the same memory."""
        if not isinstance(other, Allocation):
            return NotImplemented
        return self._address == other._address and bool(self._storage == other._storage)

    __hash__ = None  # type: ignore[assignment]

    @property
    def gone(self) -> bool:
        """Whether it was freed."""
        return bool(self._storage.expired())


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Where a layer's keys lie in a forward; None: nobody knows."""

    before: Allocation | None = None
    """What held the rows' keys when it began."""
    after: Allocation | None = None
    """What holds them with its own keys added."""

    @classmethod
    def in_place(cls, keys: Tensor) -> Held:
        """By a cache that has written its new keys behind those that it had."""
        there = Allocation(keys)
        return cls(before=there, after=there)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry(Generic[T]):
    what: T
    allocation: Allocation
    ends: tuple[int, ...]
    """Tokens of each row."""
    seen: Tensor | None
    """See `Placement.seen`."""


class Beside(Generic[T]):
    """What is known of each layer, of one batch at a time."""

    def __init__(self) -> None:
        """Nothing is known."""
        self._layers: dict[int, _Entry[T]] = {}
        self._compared: tuple[Tensor | None, Tensor | None, bool] | None = None

    def take(self, layer: int, held: Held, place: Placement) -> T | None:
        """Take out what is known of a layer's keys but for the one that this forward adds to each row.

        It is gone then: a step that fails midway leaves nothing half done.

        Returns:
            None where nothing is known of just these keys.
        """
        entry, starts = self._layers.pop(layer, None), starts_of_step(place)
        if entry is None or held.before is None or held.before != entry.allocation or entry.ends != starts:
            return None
        return entry.what if self._continues(entry.seen, place.seen) else None

    def keep(self, layer: int, what: T, held: Held, place: Placement) -> None:
        """Keep what is known of a layer's keys now, unless rows didn't get one token each."""
        starts = starts_of_step(place)
        if held.after is not None and starts is not None:
            ends = tuple(start + 1 for start in starts)
            self._layers[layer] = _Entry(what=what, allocation=held.after, ends=ends, seen=place.seen)

    def forget(self, layer: int, keys: Tensor) -> None:
        """Hear of keys that were written without a method's step: what is known of that memory is no more."""
        entry = self._layers.get(layer)
        if entry is not None and (entry.allocation.gone or entry.allocation == Allocation(keys)):
            del self._layers[layer]

    def _continues(self, before: Tensor | None, now: Tensor | None) -> bool:
        """Whether a mask hides the columns that it hid a token ago; asked once for all layers of a step."""
        if self._compared is None or self._compared[0] is not before or self._compared[1] is not now:
            self._compared = before, now, _is_longer(before, now)
        return self._compared[2]


def starts_of_step(place: Placement) -> tuple[int, ...] | None:
    """Position of each row's token; None where rows didn't get one each, or only the device knows."""
    if place.new is None or any(new.count != 1 for new in place.new):
        return None
    return tuple(new.position for new in place.new)


def _is_longer(before: Tensor | None, now: Tensor | None) -> bool:
    if now is None:
        return before is None
    if before is None:
        return bool(now[:, :-1].all())
    return before.shape == now[:, :-1].shape and torch.equal(before, now[:, :-1])
