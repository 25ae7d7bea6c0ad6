"""Who attends in place of a model's own attention, while rows are fed in a way that the model doesn't know.

A model computes queries, keys and values of a forward's tokens; which keys each query reads, and where those
lie, can then be the business of whoever feeds it (`nsa_models.packed`). The attention functions of this
package ask here first: `lower_right` for the models of transformers, `attention` for the project's decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor


class Feed(Protocol):
    """The attention of one forward; asked once for each layer, in order."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
        """Attend with the new tokens' heads.

        Args:
            q: [1, H, T, D_k] queries of T tokens.
            k: [1, H_kv, T, D_k] their keys, rotated.
            v: [1, H_kv, T, D_v] their values.
            scale: Factor on q.k; None = D_k ** -0.5.

        Returns:
            [1, T, H, D_v].
        """
        ...


_current: ContextVar[Feed | None] = ContextVar("feed", default=None)


def current_feed() -> Feed | None:
    """Whose attention it is in this forward; None: the model's own."""
    return _current.get()


@contextmanager
def feeding(feed: Feed) -> Iterator[None]:
    """Attend by `feed` meanwhile."""
    token = _current.set(feed)
    try:
        yield
    finally:
        _current.reset(token)
