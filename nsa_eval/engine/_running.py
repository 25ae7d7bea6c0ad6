"""The running batch: the lines that decode together, how many there may be, and how many may join now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from nsa_eval.engine._batching import Limits
from nsa_eval.engine._lines import Line, ReplyRequest
from nsa_eval.engine._reader import Reader
from nsa_eval.engine._steps import Decoding, FixedSlots, RowSlots
from nsa_models.families import Rows, Slots

# Decode steps that reading a few prompts takes as long as: all other rows wait meanwhile.
_ENTRY_STEPS = 16


class Entry(NamedTuple):
    """A line that waits for a slot, whose prefix is read."""

    line: Line
    depth: int
    """Tokens of it that are read."""
    row: int
    """Who has read them."""


class RunningBatch:
    """Lines of one regime in their slots, which are made when the first line enters."""

    def __init__(
        self, reader: Reader, limits: Limits, asked: Sequence[ReplyRequest], *, cuda_graphs: bool
    ) -> None:
        """No line is in a slot yet.

        Args:
            reader: Reads.
            limits: What one batch may hold.
            asked: The replies that are wanted, one at least.
            cuda_graphs: Whether steps may be replayed.
        """
        self._reader, self._limits, self._family = reader, limits, reader.family
        self._graphs = cuda_graphs and reader.graphs
        self._most = len(asked)
        self._longest = max(len(request.tokens) for request in asked)
        self.room = max(request.settings.budget for request in asked) + 1
        """Tokens of cache that every line gets behind its prompt."""
        self.lines: dict[int, Line] = {}
        """By slot."""
        self._decoding: Decoding | None = None
        self._ended = self._made = 0

    @property
    def slots(self) -> int:
        """How many there are."""
        return self.decoding().count

    @property
    def fixed(self) -> bool:
        """Whether steps have fixed shapes, those of a family's own slots."""
        return isinstance(self.decoding(), FixedSlots)

    def decoding(self) -> Decoding:
        """What decodes: slots as many as memory allows, halved until they fit.

        Raises:
            torch.OutOfMemoryError: Not even one fits.
        """
        if self._decoding is not None:
            return self._decoding
        rows = min(self._limits.rows, self._most)
        count = self._affordable(rows) if self._family.caches else rows
        while True:
            try:
                slots = self._fixed_slots(count)
                break
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
                torch.cuda.empty_cache()
                count = (count + 1) // 2
        self._decoding = (
            RowSlots(self._reader, rows) if slots is None else FixedSlots(slots, count, self._reader.device)
        )
        return self._decoding

    def _affordable(self, rows: int) -> int:
        """Slots whose caches fit, at most as many as rows."""
        # Fixed slots are there at once; what prompts take besides is counted as they enter.
        once, each = (0, self._longest + self.room) if self._family.copies else (self._longest, self.room)
        return max(1, min(rows, (self._limits.cache_tokens - once) // each))

    def _fixed_slots(self, count: int) -> Slots | None:
        """The family's own slots, where the reader allows any."""
        if not self._reader.slots:
            return None
        return self._family.slots(count, longest=self._longest, room=self.room, graphs=self._graphs)

    def vacancies(self, waiting: Sequence[Entry], rows: Rows | None) -> int:
        """How many of these may enter now, the first ones: none while too few lines have left.

        Args:
            waiting: One at least.
            rows: Who has read the prefixes; None: nobody.
        """
        if not self.lines:
            return min(len(waiting), self.slots)
        if not self._family.refills:
            return 0
        decoding = self.decoding()
        free = decoding.count - len(self.lines)
        if free < min(len(waiting), self._worth_entering(decoding.count)):
            return 0
        # Rows that share what was read hold whole blocks, also of others that have left.
        shared = None if self._family.copies else decoding.kept(rows)
        used = sum(line.own for line in self.lines.values()) if shared is None else shared
        fits = 0
        for entry in waiting[:free]:
            used += self._own(entry)
            used -= 0 if shared is None else self.room  # all tails are there already
            fits += used <= self._limits.cache_tokens
        return fits

    def _worth_entering(self, slots: int) -> int:
        """Free slots that are worth to stop all others for.

        Waiting for n of R slots leaves n / 2 of them idle, and an entry costs all rows some steps each time n
        have ended, which takes n m / R steps where replies have m tokens: least is lost at this n.
        """
        mean = self._made / self._ended if self._ended else self.room / 4
        return max(1, min(slots // 2, round(slots * math.sqrt(2 * _ENTRY_STEPS / max(1.0, mean)))))

    def _own(self, entry: Entry) -> int:
        """Tokens of cache that count as an entry's own."""
        shared = 0 if self._family.copies else entry.depth
        return len(entry.line.request.tokens) - shared + self.room

    def admit(self, entries: Sequence[Entry], rows: Rows) -> None:
        """Give each line a slot; its next step feeds its last token.

        Args:
            entries: No more than there are free slots.
            rows: Who has read all of each but its last token. They are used up.

        Raises:
            torch.OutOfMemoryError: The lines have slots, but some may lack what was read: `dissolve` the
                batch.
        """
        decoding = self.decoding()
        free = (slot for slot in range(decoding.count) if slot not in self.lines)
        slots = [next(free) for _ in entries]
        for entry, slot in zip(entries, slots, strict=True):
            entry.line.slot, entry.line.own = slot, self._own(entry)
        self.lines.update(zip(slots, (entry.line for entry in entries), strict=True))
        decoding.admit(slots, rows, [int(entry.line.read()[-1]) for entry in entries])

    def leave(self, line: Line) -> None:
        """Free a line's slot."""
        assert line.slot is not None
        assert self._decoding is not None
        self._decoding.release(line.slot)
        del self.lines[line.slot]
        line.slot = None

    def ended(self, tokens: int) -> None:
        """Learn the length of a reply: how long replies are decides when it is worth to let others enter."""
        self._ended += 1
        self._made += tokens

    def dissolve(self) -> list[Line]:
        """Let go of all slots after a failure for want of memory; there will be half as many.

        Returns:
            The lines that had one.

        Raises:
            torch.OutOfMemoryError: There was one slot only.
        """
        count, lines = self.slots, list(self.lines.values())
        self.lines, self._decoding = {}, None
        if count == 1 and lines:
            raise torch.OutOfMemoryError("one row at a time doesn't fit")
        for line in lines:
            line.slot = None
        self._most = max(1, min(count, max(1, len(lines))) // 2)
        return lines
