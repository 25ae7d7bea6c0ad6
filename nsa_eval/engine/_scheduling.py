"""Continuous batching: prompts are read, rows decode a token a step together, and those that end make room.

Where a family's rows can't join others, a batch ends before the next begins. A reply that grows across a
border of the model's frequencies (nsa_models/families/_frequencies.py) leaves its batch there: its prompt and
what it has so far are read again, as the prompt of the rest. So are rows that were taken out for want of
memory. Under a sparse method that reads prompts and steps differently (`Reader.either_phase`) the former is
an error, and the latter begin anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from nsa_eval.engine._batching import Limits, batches
from nsa_eval.engine._lines import Endings, Line, Reply, ReplyRequest
from nsa_eval.engine._meter import Meter
from nsa_eval.engine._picking import Picked, pick
from nsa_eval.engine._prefixes import Node
from nsa_eval.engine._reader import NonFiniteLogitsError, Place, Reader
from nsa_eval.engine._running import Entry, RunningBatch
from nsa_eval.engine._traversal import Member, Traversal
from nsa_eval.errors import UserError
from nsa_models.families import Rows

Emit = Callable[[list[Reply]], None]


class Scheduler:
    """Makes the replies to requests of one regime."""

    def __init__(
        self,
        reader: Reader,
        limits: Limits,
        requests: Sequence[ReplyRequest],
        asked: Sequence[ReplyRequest],
        *,
        endings: Endings,
        meter: Meter,
        cuda_graphs: bool,
        emit: Emit,
    ) -> None:
        """Nothing is read yet.

        Args:
            reader: Reads.
            limits: What one batch may hold.
            requests: All of them, in the numbers of the tree.
            asked: Those whose replies are wanted, one at least.
            endings: Where replies end.
            meter: Takes the time.
            cuda_graphs: Whether steps may be replayed.
            emit: Called as replies end.
        """
        self.reader, self.limits = reader, limits
        self.family, self.endings = reader.family, endings
        self.meter, self.emit = meter, emit
        self.requests = requests
        self.wanted = {request.name for request in asked}
        self.running = RunningBatch(reader, limits, asked, cuda_graphs=cuda_graphs)
        self._pending: deque[Picked] = deque()
        """Tokens that are on their way to the host."""
        self._parked: list[Line] = []
        """Lines that have to be read again."""

    def run(self, tree: Node) -> None:
        """Make all replies."""
        Traversal(
            self.reader,
            self.limits,
            [request.tokens for request in self.requests],
            wanted=lambda index: self.requests[index].name in self.wanted,
            visit=self._visit,
            relieve=self._drain,
        ).run(tree)
        self._drain()
        while self._parked:
            parked, self._parked = self._parked, []
            for batch in batches(
                sorted(parked, key=lambda line: -line.length),
                width=lambda line: line.length,
                limits=self.limits,
                extra=max(line.left for line in parked),
                equal=True,
                widest=self.reader.widest,
            ):
                self._in_turn([Entry(line, 0, 0) for line in batch], None)

    # --- prompts
    # ------------------------------------------------------------------------------------------------------

    def _visit(self, members: list[Member], rows: Rows | None) -> None:
        """Prompts whose prefixes `rows` have read, batch by batch, as others leave."""

        def order(member: Member) -> tuple[object, ...]:
            request = self.requests[member.index]
            tokens = request.tokens.astype(">u4").tobytes()
            return (member.depth - len(request.tokens), tokens, request.key)

        for batch in batches(
            sorted(members, key=order),
            width=lambda member: len(self.requests[member.index].tokens) - member.depth,
            limits=self.limits if self.family.refills else self.limits.for_replies(),
            extra=self.running.room + (max(member.depth for member in members) if self.family.copies else 0),
            equal=not self.family.ragged,
            packed=self.family.packs,
            widest=self.reader.widest,
        ):
            waiting = [
                Entry(Line.of(self.requests[member.index]), member.depth, member.row)
                for member in batch
                if self.requests[member.index].name in self.wanted
            ]
            while waiting:
                free = self.running.vacancies(waiting, rows)
                if not free:
                    self._step()
                    continue
                some, waiting = waiting[:free], waiting[free:]
                self._enter(some, rows)

    def _enter(self, entries: list[Entry], rows: Rows | None) -> None:
        """Read the rest of each line's prompt, choose its first token, and let it decode.

        Args:
            entries: Lines without a slot; no more than there are free ones.
            rows: Who has read the prefixes; None: nobody.
        """
        if rows is not None and self.reader.either_phase and self.running.fixed:
            # Of several replies to one prompt all but its last token is read: a step reads that as well.
            read = [entry for entry in entries if entry.line.length - entry.depth == 1]
            if read:
                places = [entry.row for entry in read]
                entries = [entry for entry in entries if entry not in read]
                if not self._admit(read, self.reader.select(rows, places)):  # there will be fewer slots
                    self._in_turn(entries, rows)
                    return
        if not entries:
            return
        try:
            self._start(entries, *self._prompts(entries, rows))
            return
        except torch.OutOfMemoryError as error:
            lacking = str(error)
        # Behind the error, whose frames hold the caches that were being made. Rows that decode have to end
        # first; where there are none, half of the prompts have to wait.
        alone = not self._drain()
        if alone and len(entries) == 1:
            raise torch.OutOfMemoryError(lacking)
        torch.cuda.empty_cache()
        # Some may have got their token before: they go on from it.
        left = [entry for entry in entries if not (entry.line.ended or entry.line in self._parked)]
        for entry in left:
            entry.line.rewind(keep=self.reader.either_phase)
        middle = (len(left) + 1) // 2 if alone else len(left)
        for part in (left[:middle], left[middle:]):
            self._in_turn(part, rows)

    def _in_turn(self, entries: list[Entry], rows: Rows | None) -> None:
        """Let lines enter, no more than there are slots, each time to their end."""
        while entries:
            count = self.running.slots
            some, entries = entries[:count], entries[count:]
            self._enter(some, rows)
            self._drain()

    def _prompts(self, entries: list[Entry], rows: Rows | None) -> tuple[Rows, Tensor]:
        """Read prompts in batches of little padding; the rows joined, and their logits [B, V]."""
        family = self.family
        parts: list[Rows] = []
        logits: list[Tensor] = []
        for batch in batches(
            entries,
            width=lambda entry: entry.line.length - entry.depth,
            limits=self.limits if family.ragged else self.limits.for_replies(),
            packed=family.packs,
            widest=self.reader.widest,
        ):
            places = [entry.row for entry in batch]
            new = family.empty(len(batch)) if rows is None else self.reader.select(rows, places)
            pieces = [entry.line.read()[entry.depth :] for entry in batch]
            last: dict[int, Tensor] = {}

            def collect(made: Tensor, where: list[Place], last: dict[int, Tensor] = last) -> None:
                last.update((row, line) for line, (row, _) in zip(made, where, strict=True))

            self.reader.read(pieces, new, first=[len(piece) - 1 for piece in pieces], on_logits=collect)
            parts.append(new)
            logits.extend(last[row] for row in range(len(batch)))
        return (self.reader.join(parts) if len(parts) > 1 else parts[0]), torch.stack(logits)

    def _start(self, entries: list[Entry], rows: Rows, logits: Tensor) -> None:
        """Choose first tokens; lines that go on get slots."""
        found = pick(logits, [entry.line for entry in entries], self.endings).wait()
        self._charge_prefill(entries)
        going: list[int] = []
        finished: list[Reply] = []
        for number, (line, token, top) in enumerate(found):
            self._append(line, token, top)
            if line.ended:
                finished.append(self._reply(line))
            elif not self._parks(line):
                going.append(number)
        if finished:
            self.emit(finished)
        if going:
            some = rows if len(going) == len(entries) else self.reader.select(rows, going)
            self._admit([entries[number] for number in going], some)

    def _charge_prefill(self, entries: list[Entry]) -> None:
        """Share the time since the last lap, and the cells counted in it, by the tokens that each read."""
        seconds = self.meter.lap()
        read = sum(entry.line.length - entry.depth for entry in entries)
        for entry in entries:
            entry.line.prefill += seconds * (entry.line.length - entry.depth) / read
        if self.meter.cells.counts:
            cells = [self.meter.cells.prompt(entry.line.length, after=entry.depth) for entry in entries]
            for entry, counted in zip(entries, self.meter.cells.counted("prefill", cells), strict=True):
                entry.line.count("prefill", counted)

    def _admit(self, entries: list[Entry], rows: Rows) -> bool:
        """Give each line a slot; whether there was memory for it."""
        try:
            self.running.admit(entries, rows)
        except torch.OutOfMemoryError:
            self._retreat()
            return False
        return True

    # --- steps
    # ------------------------------------------------------------------------------------------------------

    def _drain(self) -> bool:
        """Let all rows decode to their end; whether there were any."""
        busy = bool(self.running.lines)
        while self.running.lines or self._pending:
            self._step()
        return busy

    def _step(self) -> None:
        """One step of all rows, or a look at one that is under way."""
        decoding, lines = self.running.decoding(), self.running.lines
        if any(line.left > 0 for line in lines.values()):
            try:
                order, logits = decoding.step()
                stepped = [lines.get(slot) for slot in order]
                # A line with all of its tokens on their way goes along, and nobody looks.
                picked = pick(
                    logits, [line if line and line.left > 0 else None for line in stepped], self.endings
                )
            except torch.OutOfMemoryError:
                self._retreat()
                return
            decoding.feed(picked.tokens)
            self._pending.append(picked)
            if len(self._pending) <= decoding.lag:
                return
        if self._pending:
            self._settle(self._pending.popleft())

    def _settle(self, picked: Picked) -> None:
        """Take the tokens of one step to their lines; those that end leave."""
        found = [(line, token, top) for line, token, top in picked.wait() if not line.ended]
        self._charge_step([line for line, _, _ in found])
        finished: list[Reply] = []
        for line, token, top in found:
            self._append(line, token, top)
            if line.ended or self._parks(line):
                self.running.leave(line)
            if line.ended:
                finished.append(self._reply(line))
        if finished:
            self.emit(finished)

    def _charge_step(self, lines: list[Line]) -> None:
        """Share the time since the last lap, and the cells counted in it, among a step's lines."""
        seconds = self.meter.lap()
        for line in lines:
            line.decode += seconds / len(lines)
        if self.meter.cells.counts:
            cells = [
                self.meter.cells.steps(line.length, line.length, len(line.request.tokens)) for line in lines
            ]
            for line, counted in zip(lines, self.meter.cells.counted("decode", cells), strict=True):
                line.count("decode", counted)

    def _append(self, line: Line, token: int, top: float) -> None:
        if not np.isfinite(top):
            raise NonFiniteLogitsError.at(
                self.reader.name, line.request.origin, f"the largest logit is {top}"
            )
        line.tokens.append(token)
        self.endings.look(line)

    def _parks(self, line: Line) -> bool:
        """Whether the next forward of a line belongs to another regime; it is read again then."""
        # The next forward, which feeds the token just chosen, has as many tokens as the line.
        if self.reader.regime(line.length) == self.reader.regime(line.length - 1):
            return False
        if not self.reader.either_phase:
            raise UserError(
                f"{line.request.origin}: at {line.length} tokens the positional frequencies of "
                f"{self.reader.name} change, so that its reply would be read again as a prompt, which isn't "
                "what the method does to replies; set a max_length that keeps replies on one side"
            )
        self._parked.append(line)
        return True

    def _retreat(self) -> None:
        """Too little memory: all rows are read again later, and half as many decode together.

        A step or an entry that failed midway may have written some layers and not others.
        """
        while self._pending:
            self._settle(self._pending.popleft())
        lines = self.running.dissolve()
        for line in lines:
            line.rewind(keep=self.reader.either_phase)
        self._parked += lines
        torch.cuda.empty_cache()

    def _reply(self, line: Line) -> Reply:
        self.running.ended(len(line.tokens))
        prompt, new = len(line.request.tokens), len(line.tokens)
        cost = self.meter.replied(prompt, new, line.prefill, line.decode, counted=line.counted)
        return Reply(line.request.name, self.endings.text(line), new, line.finished, cost)
