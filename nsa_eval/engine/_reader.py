"""Reading token rows with a model: in pieces, and with logits only where somebody asked for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_eval.engine._batching import chunk_of
from nsa_eval.engine._logits import find_route
from nsa_eval.engine._prefixes import Tokens
from nsa_eval.engine._prompts import Origin
from nsa_eval.errors import UserError
from nsa_models.families import Family, Restrictions, Rows, family_of, name_of
from nsa_models.methods import Memories, attached_to

# Cells of logits [positions, vocabulary] made at a time: 128 MiB in float32.
_LOGIT_CELLS = 2**25

# On a GPU a forward takes some 10 ms to launch, in which a model of a billion parameters reads this much.
_FORWARD_TOKENS_CUDA = 1024
# Multiples in which attention kernels have few sizes (nsa_kernels.spans).
_STEP_TOKENS = 1024

# glibc hands a freed block above its threshold straight back to the system, and raises that threshold to the
# largest block freed so far, up to 32 MiB. Free one such block, and later steps reuse their memory: without,
# page faults took up to two fifths of the time of NSA's decoding on a CPU.
_WARM_BYTES = 31 * 2**20

Place: TypeAlias = tuple[int, int]
"""(row, column) of a batch."""
OnLogits: TypeAlias = Callable[[Tensor, list[Place]], None]
"""Receives logits [T, V] in the model's dtype and the T places they belong to, row by row."""


class NonFiniteLogitsError(UserError):
    """The model gave NaN or infinite logits: broken weights, or a dtype that overflows."""

    @classmethod
    def at(cls, model: str, origin: Origin, seen: str) -> NonFiniteLogitsError:
        """The error for one request of `model`; `seen` says what was found."""
        return cls(
            f"{model} gave logits that aren't finite numbers ({seen}) for {origin}; its weights may be "
            "damaged, or its dtype too narrow: check the checkpoint, or try dtype: float32. What was "
            "finished before is stored"
        )


class Reader:
    """A model, and how to feed it."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        prefill_chunk: int | Literal["auto"],
        restrictions: Restrictions | None = None,
        family: Family | None = None,
    ) -> None:
        """Find out how the model is fed, unless that is known.

        Args:
            model: Any causal language model of transformers.
            prefill_chunk: Tokens of a row per forward; longer rows are read in pieces. "auto": as many as
                keep activations within bounds.
            restrictions: What a method that is attached to the model takes away from its family's abilities.
            family: What `family_of` found before a method was attached; found here when None.

        Raises:
            FamilyError: The model isn't causal, or can't be run on token ids alone.
        """
        self.model = model
        self.name = name_of(model)
        self.family = family or family_of(model)
        allowed = restrictions or Restrictions()
        # The one place where the two meet: the rest of the engine asks for these.
        self.continuable = self.family.continuable and allowed.continuable
        self.shared = self.family.shared and self.continuable and allowed.shared
        self.graphs = allowed.graphs
        self.either_phase = allowed.either_phase
        self.slots = allowed.slots
        self._method = attached_to(model)
        self.device = model.device
        self.worth = _FORWARD_TOKENS_CUDA if self.device.type == "cuda" else 0
        """Tokens that a forward must save to be worth its launches."""
        self.step_tokens = _STEP_TOKENS if self.family.packs and self.device.type == "cuda" else 1
        """Where a long prefix had better end."""
        self.prefill_chunk = chunk_of(model) if prefill_chunk == "auto" else prefill_chunk
        if self.device.type == "cpu":
            torch.empty(_WARM_BYTES, dtype=torch.uint8)  # freed at once, which is the point
        self.route, vocabulary = find_route(self.family)
        self.max_positions = max(1, _LOGIT_CELLS // vocabulary)
        """Scored positions whose logits are there at a time."""

    def read(
        self,
        pieces: Sequence[Tokens],
        rows: Rows | None,
        *,
        first: Sequence[int],
        on_logits: OnLogits,
        final: bool = False,
    ) -> None:
        """Feed row b the tokens pieces[b] and hand out the logits of its columns first[b], first[b] + 1, ...
        .

        Args:
            pieces: B rows of at least one token each.
            rows: What the rows have read before (changed in place, to be continued), or None when they
                start and end here.
            first: First column whose logits are wanted; len(pieces[b]) for none.
            on_logits: Called once or more, with places in reading order.
            final: Nothing goes on from the rows afterwards.
        """
        counts = [len(piece) for piece in pieces]
        width = max(counts)
        tokens = torch.zeros(len(pieces), width, dtype=torch.long)
        for row, piece in enumerate(pieces):
            tokens[row, : len(piece)] = torch.from_numpy(piece)
        tokens = tokens.to(self.device)
        columns = np.arange(width)
        wanted = torch.from_numpy(
            (columns >= np.array(first)[:, None]) & (columns < np.array(counts)[:, None])
        )
        fresh = rows is None or not any(rows.lengths)
        continued = rows is not None and not final
        edges = self._edges(wanted, self.first_forward(counts) if fresh else 1)
        if rows is None and len(edges) > 2:
            rows = self.family.empty(len(pieces))
        if rows is not None and fresh:
            rows.room = width
        for start, end in pairwise(edges):
            part = [min(max(count - start, 0), end - start) for count in counts]
            marked = wanted[:, start:end]
            if rows is not None and final and end == width:
                rows.kept = False
            places = [(row, start + column) for row, column in marked.nonzero().tolist()]
            self._forward(tokens[:, start:end], part, rows, marked, places, on_logits, continued)

    def step(self, tokens: Sequence[int], rows: Rows) -> Tensor:
        """Feed one token to every row; logits [B, V] of the next."""
        ids = torch.tensor(tokens, dtype=torch.long, device=self.device)[:, None]
        counts = [1] * len(tokens)
        if not self.family.caches:
            found: list[Tensor] = []
            places = [(row, 0) for row in range(len(tokens))]
            self._forward(
                ids,
                counts,
                rows,
                torch.ones(len(tokens), 1, dtype=torch.bool),
                places,
                lambda logits, _: found.append(logits),
            )
            return torch.cat(found)
        given = self.family.inputs(ids, counts, rows)
        self.route.ask_last(given)
        with self._phase("decode", counts, rows):
            output = self.family.forward(given)
        self.family.absorb(output, ids, counts, rows)
        last: Tensor = output.logits[:, -1]
        return last

    def select(self, rows: Rows, indices: list[int]) -> Rows:
        """Rows `indices` (repeats allowed) as new rows, with what a method remembers of them."""
        new = self.family.select(rows, indices)
        new.memories = None if rows.memories is None else rows.memories.select(indices)
        return new

    def join(self, parts: list[Rows]) -> Rows:
        """All rows as one batch, in order, with what a method remembers of them. The parts are used up."""
        memories = [part.memories for part in parts]
        new = self.family.join(parts)
        new.memories = None if None in memories else Memories.join([one for one in memories if one])
        return new

    def regime(self, length: int) -> tuple[int, int]:
        """What rows of `length` tokens have in common with those that may share a batch with them."""
        return self.family.frequencies.regime(length)

    def first_forward(self, lengths: Sequence[int]) -> int:
        """Tokens that the first forward of rows of one regime reads at least, so that each is as alone."""
        if not self.continuable:
            return max(lengths)
        return max(self.family.first_forward(length) for length in lengths)

    def widest(self, length: int) -> int:
        """Tokens of a row of `length` that one forward reads at most."""
        return min(length, max(self.prefill_chunk, self.first_forward([length])))

    def _edges(self, wanted: Tensor, least: int) -> list[int]:
        """Columns at which to cut, so that no forward is longer or makes more logits than allowed.

        The first forward has `least` tokens even so.
        """
        width = wanted.shape[1]
        if not self.continuable:
            return [0, width]
        total = torch.cumsum(self.route.made(wanted), 0)
        edges = [0]
        while edges[-1] < width:
            start = edges[-1]
            before = int(total[start - 1]) if start else 0
            fits = int(torch.searchsorted(total, before + self.max_positions, right=True))
            end = min(start + self.prefill_chunk, max(fits, start + 1))
            edges.append(min(width, end if start else max(end, least)))
        return edges

    def _forward(
        self,
        tokens: Tensor,
        counts: list[int],
        rows: Rows | None,
        wanted: Tensor,
        places: list[Place],
        on_logits: OnLogits,
        continued: bool = True,
    ) -> None:
        """One forward; logits [T, V] of the wanted places, which are `places` in row-major order.

        Without `continued` nothing goes on from the rows, and a method needn't remember them.
        """
        given = self.family.inputs(tokens, counts, rows)
        wanted = self.family.places(wanted, counts, rows)
        self.route.ask(given, wanted)
        with self._phase("prefill", counts, rows, continued=continued):
            output = self.family.forward(given, module=self.route.module)
        if rows is not None:
            self.family.absorb(output, tokens, counts, rows)
        if not places:
            return
        parts = self.route.logits(output, wanted, self.max_positions)
        del output
        told = 0
        for logits in parts:
            on_logits(logits, places[told : told + len(logits)])
            told += len(logits)
            del logits  # before the next part is made

    def _phase(
        self,
        phase: Literal["prefill", "decode"],
        counts: list[int],
        rows: Rows | None,
        *,
        continued: bool = True,
    ) -> AbstractContextManager[object]:
        """Tell a sparse method what a forward is and of which rows: its shapes and the cache's don't say."""
        if self._method is None:
            return nullcontext()
        memories = rows.memories if rows is not None else None
        if memories is None and (rows is None or not any(rows.lengths)):
            memories = self._method.fresh(len(counts))
        if rows is not None:
            rows.memories = memories
        if phase == "decode":
            return self._method.decoding(counts, memories)
        return self._method.prefilling(counts, memories, continued=continued)
