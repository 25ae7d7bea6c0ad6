"""One token after another for a batch of rows: by ordinary forwards, or by a step in a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nsa_eval.engine._reader import Reader
from nsa_models.families import Rows, SteadyDecoder

# Warming up and capturing cost about as much as this many steps save: a guess on the safe side, as a capture
# is three forwards without replay and a synchronisation.
MIN_STEPS = 16


class Stepper:
    """Decodes rows whose prompts are read; owns them from then on.

    A graph holds a fixed number of rows. Rows that end meanwhile stay in it with tokens that nobody reads,
    since a step costs the launch of its kernels far more than its rows. Once half of them have ended, the
    others go on in a graph of their own, if enough steps are left to pay for it: only then do the idle rows'
    reads of their caches weigh more than another capture.
    """

    def __init__(self, reader: Reader, rows: Rows, *, graphs: bool) -> None:
        """Args: `graphs` allows CUDA graphs where the rows' family has them."""
        self.reader, self.rows, self.graphs = reader, rows, graphs and reader.graphs
        self._places = list(range(len(rows.lengths)))
        self._index: Tensor | None = None
        self._decoder: SteadyDecoder | None = None
        self._tried = False

    def keep(self, indices: list[int]) -> None:
        """Go on with these of the rows, in this order."""
        if self._decoder is None:
            self.rows = self.reader.family.select(self.rows, indices)
            self._places = list(range(len(indices)))
        else:
            self._places = [self._places[index] for index in indices]
            self._index = torch.tensor(self._places, device=self.reader.device)

    def step(self, tokens: Sequence[int], left: int) -> Tensor:
        """Feed one token to every row that is kept.

        Args:
            tokens: B tokens.
            left: Steps that may still be asked for, this one among them.

        Returns:
            Logits [B, V] of the next, good until the next step.
        """
        family = self.reader.family
        if self.graphs and left >= MIN_STEPS:
            if not self._tried:
                self._tried = True
                self._decoder = family.steady(self.rows, left)
            elif self._decoder is not None and 2 * len(self._places) <= len(self.rows.lengths):
                self._decoder = None  # its memory is free before the next is made
                self.rows = family.select(self.rows, self._places)
                self._places, self._index = list(range(len(tokens))), None
                self._decoder = family.steady(self.rows, left)
        if self._decoder is None:
            return self.reader.step(tokens, self.rows)
        ids = [0] * len(self.rows.lengths)
        for place, token in zip(self._places, tokens, strict=True):
            ids[place] = token
        logits = self._decoder.step(ids)
        # The decoder keeps the cache up to date by itself.
        self.rows.lengths = [length + 1 for length in self.rows.lengths]
        return logits if self._index is None else logits[self._index]
