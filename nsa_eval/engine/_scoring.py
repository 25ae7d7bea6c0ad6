"""Log-likelihoods: every distinct input and shared prefix is read once, and only scored places get logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nsa_eval.engine._batching import Limits, batches
from nsa_eval.engine._prefixes import Node, Tokens, prefix_tree
from nsa_eval.engine._reader import Place, Reader
from nsa_eval.engine._traversal import Member, Traversal
from nsa_models.families import Rows

# float32 cells that the log-softmax works on at a time: the copy stays in a CPU's cache.
_SOFTMAX_CELLS = 2**21
# Tokens that sharing must save to be worth it (measured on a CPU with 6M parameters: a forward of one token
# takes as long as 30 more tokens in a batch), and tokens of a prefix that is read alone, for others to go on
# from.
_MIN_SAVED = 32
_MIN_HEAD = 64

LogLikelihood = tuple[float, bool]
"""Nats, and whether greedy decoding gives the continuation."""


@dataclass(slots=True)
class Target:
    """One continuation to score on an input."""

    name: int
    """The caller's own number for it."""
    tokens: list[int]
    end: int
    """Columns up to the prediction of its last token: the whole input, unless another target's goes on."""


@dataclass(slots=True)
class Unit:
    """One distinct input and all the continuations that are scored on it."""

    tokens: Tokens
    """Context and continuation without the last token, which is predicted only."""
    targets: list[Target] = field(default_factory=list)

    @property
    def first(self) -> int:
        """The first column with a scored prediction."""
        return min(target.end - len(target.tokens) for target in self.targets)


Emit = Callable[[list[tuple[int, LogLikelihood]]], None]
"""Receives the scores of one batch, by target name."""


def units_of(pairs: Sequence[tuple[int, list[int], list[int]]]) -> list[Unit]:
    """Distinct inputs of (name, context, continuation) requests; one-token choices share theirs."""
    units: dict[bytes, Unit] = {}
    for name, context, continuation in pairs:
        tokens = np.array((context + continuation)[:-1], dtype=np.int64)
        unit = units.setdefault(tokens.tobytes(), Unit(tokens))
        unit.targets.append(Target(name, continuation, len(tokens)))
    return list(units.values())


def nested(units: Sequence[Unit]) -> list[Unit]:
    """Score units whose input begins another's with the other: nested contexts are then one pass.

    What a causal model predicts inside of an input doesn't depend on what comes behind. Only where the scored
    columns meet: logits are made of all columns from the first on.
    """
    kept: dict[int, Unit] = {}
    host: Unit | None = None
    order = sorted(range(len(units)), key=lambda index: units[index].tokens.astype(">u4").tobytes())
    for index in reversed(order):  # sorted, an input stands right before those that begin with it
        unit, size = units[index], len(units[index].tokens)
        if host and host.first <= size and np.array_equal(host.tokens[:size], unit.tokens):
            host.targets += unit.targets
        else:
            host = kept[index] = Unit(unit.tokens, list(unit.targets))
    return [kept[index] for index in sorted(kept)]


class Scorer:
    """Scores units with one reader."""

    def __init__(self, reader: Reader, limits: Limits, *, share_prefixes: bool) -> None:
        """Args are parts of the Engine."""
        self.reader = reader
        self.limits = limits
        self.share = share_prefixes and reader.shared

    @torch.inference_mode()
    def run(self, units: list[Unit], *, wanted: Callable[[int], bool], emit: Emit) -> None:
        """Score the wanted targets of all units.

        Batches are planned from all units, wanted or not, so that a resumed run computes the rest just as the
        first one would have.

        Args:
            units: What there is to score.
            wanted: Whether a target (by name) is still to be scored.
            emit: Called once a batch, as soon as it is computed.
        """
        regimes: dict[tuple[int, int], list[Unit]] = {}
        for unit in units:
            regimes.setdefault(self.reader.regime(len(unit.tokens)), []).append(unit)
        for _, group in sorted(regimes.items()):
            together = nested(group) if self.share else group
            _Work(self, together, wanted, emit).run(self._tree(together))

    def _tree(self, units: list[Unit]) -> Node:
        if not self.share:
            return Node(0, members=list(range(len(units))))
        return prefix_tree(
            [unit.tokens[: unit.first] for unit in units],
            min_saved=max(_MIN_SAVED, self.reader.worth),
            per_sequence=self.reader.family.resume_tokens,
            min_head=max(_MIN_HEAD, self.reader.worth // 4),
            step=self.reader.step_tokens,
            least=self.reader.first_forward([len(unit.tokens) for unit in units]),
        )


class _Work:
    """Units of one regime, in one call of `Scorer.run`."""

    def __init__(self, scorer: Scorer, units: list[Unit], wanted: Callable[[int], bool], emit: Emit) -> None:
        self.reader = scorer.reader
        self.limits = scorer.limits
        self.units = units
        self.wanted = wanted
        self.emit = emit

    def run(self, tree: Node) -> None:
        """Score all units."""
        Traversal(
            self.reader,
            self.limits,
            [unit.tokens for unit in self.units],
            wanted=self._wanted,
            visit=self._members,
        ).run(tree)

    def _wanted(self, index: int) -> bool:
        return any(self.wanted(target.name) for target in self.units[index].targets)

    def _members(self, members: list[Member], rows: Rows | None) -> None:
        """Score units whose prefixes `rows` have read, in batches, longest first."""

        def width(member: Member) -> int:
            return len(self.units[member.index].tokens) - member.depth

        def order(member: Member) -> tuple[object, ...]:
            tokens = self.units[member.index].tokens.astype(">u4").tobytes()
            # Packed rows of one prefix read it together, if they stand side by side.
            return (-width(member), tokens) if not family.packs else (-member.depth, tokens)

        family = self.reader.family
        members = sorted(members, key=order)
        for batch in batches(
            members,
            width=width,
            limits=self.limits,
            extra=max((member.depth for member in members), default=0) if family.copies else 0,
            equal=not family.padded,
            packed=family.packs,
            widest=self.reader.widest,
        ):
            self._batch([member for member in batch if self._wanted(member.index)], rows)

    def _batch(self, members: list[Member], rows: Rows | None) -> None:
        if not members:
            return
        tally = self._tallied(members, rows)
        if tally is None:
            torch.cuda.empty_cache()
            self._batch(members[: len(members) // 2], rows)
            self._batch(members[len(members) // 2 :], rows)
            return
        self.emit([(name, score) for name, score in tally.scores() if self.wanted(name)])

    def _tallied(self, members: list[Member], rows: Rows | None) -> _Tally | None:
        """Read a batch; None where memory lacked for so many, with all that the attempt held let go.

        Raises:
            torch.OutOfMemoryError: Memory lacked for one.
        """
        units = [self.units[member.index] for member in members]
        depths = [member.depth for member in members]
        tally = _Tally(units, depths)
        try:
            new = None if rows is None else self.reader.select(rows, [one.row for one in members])
            self.reader.read(
                [unit.tokens[depth:] for unit, depth in zip(units, depths, strict=True)],
                new,
                first=[unit.first - depth for unit, depth in zip(units, depths, strict=True)],
                on_logits=tally.add,
                final=True,
            )
        except torch.OutOfMemoryError:
            if len(members) == 1:
                raise
            return None
        return tally


class _Tally:
    """Sums a batch's log-probabilities as its logits come in."""

    def __init__(self, units: list[Unit], depths: list[int]) -> None:
        # (row, column) -> the (target, token) pairs that are predicted there
        self.at: dict[Place, list[tuple[int, int]]] = {}
        self.names: list[int] = []
        for row, (unit, depth) in enumerate(zip(units, depths, strict=True)):
            for target in unit.targets:
                start = target.end - len(target.tokens) - depth
                for offset, token in enumerate(target.tokens):
                    self.at.setdefault((row, start + offset), []).append((len(self.names), token))
                self.names.append(target.name)
        self.sums = [0.0] * len(self.names)
        self.greedy = [True] * len(self.names)

    def add(self, logits: Tensor, places: list[Place]) -> None:
        step = max(1, _SOFTMAX_CELLS // logits.shape[-1])
        for start in range(0, len(places), step):
            some = logits[start : start + step].float()
            pairs = [
                (line, target, token)
                for line, place in enumerate(places[start : start + step])
                for target, token in self.at[place]
            ]
            lines = torch.tensor([line for line, _, _ in pairs], device=some.device)
            tokens = torch.tensor([token for _, _, token in pairs], device=some.device)
            best = some.argmax(-1)[lines] == tokens
            values = some[lines, tokens] - torch.logsumexp(some, -1)[lines]
            for (_, target, _), value, is_best in zip(pairs, values.tolist(), best.tolist(), strict=True):
                self.sums[target] += value
                self.greedy[target] &= is_best

    def scores(self) -> list[tuple[int, LogLikelihood]]:
        return list(zip(self.names, zip(self.sums, self.greedy, strict=True), strict=True))
