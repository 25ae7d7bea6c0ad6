"""Decoders that keep no cache that could be relied on: every forward reads the whole row again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.families._contract import Family, Note, Rows, right_padded


class UncachedFamily(Family):
    """Right: nothing but plain forwards. Slow: a reply of n tokens reads its prompt n times."""

    name = "uncached"

    def __init__(self, model: PreTrainedModel, *, padded: bool = True) -> None:
        """Rows of any length go together where padding behind a row changes nothing."""
        super().__init__(model)
        self.ragged = self.padded = padded
        self.caches = False
        self.notes = (
            Note(
                kind="uncached",
                detail=f"{type(model).__name__} has no cache that continues as its plain forward does; "
                "replies were made by reading the whole row again for every token",
            ),
        )

    def empty(self, rows: int) -> Rows:
        """Rows without tokens."""
        none = torch.zeros(0, dtype=torch.long, device=self.model.device)
        return Rows(cache=None, lengths=[0] * rows, history=[none] * rows)

    def _continued(self, tokens: Tensor, counts: list[int], rows: Rows) -> dict[str, Any]:
        return {"input_ids": right_padded(self._read(tokens, counts, rows)), **self.plain}

    def places(self, wanted: Tensor, counts: list[int], rows: Rows | None) -> Tensor:
        """Behind what each row has read before."""
        if rows is None:
            return wanted
        width = wanted.shape[1]
        ends = [length + count for length, count in zip(rows.lengths, counts, strict=True)]
        moved = wanted.new_zeros(len(counts), max(rows.lengths) + width)
        for row, length in enumerate(rows.lengths):
            moved[row, length : length + width] = wanted[row]
        return moved[:, : max(ends)]

    def absorb(self, output: Any, tokens: Tensor, counts: list[int], rows: Rows) -> None:  # noqa: ANN401 - a ModelOutput
        """Remember the tokens alone."""
        rows.history = self._read(tokens, counts, rows)
        rows.lengths = [len(row) for row in rows.history]

    def select(self, rows: Rows, indices: list[int]) -> Rows:
        """The rows' tokens."""
        assert rows.history is not None
        history = [rows.history[index] for index in indices]
        return Rows(cache=None, lengths=[len(row) for row in history], history=history)

    def join(self, parts: list[Rows]) -> Rows:
        """All tokens."""
        history = [row for part in parts for row in part.history or []]
        return Rows(cache=None, lengths=[len(row) for row in history], history=history)

    def _read(self, tokens: Tensor, counts: list[int], rows: Rows) -> list[Tensor]:
        assert rows.history is not None
        return [
            torch.cat([old, new[:count]])
            for old, new, count in zip(rows.history, tokens, counts, strict=True)
        ]
