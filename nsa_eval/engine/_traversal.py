"""A walk over sequences below the prefixes that they share, each of which is read once.

What comes of a sequence once its prefix is read (scores, a reply) is the visitor's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nsa_eval.engine._batching import Limits, batches
from nsa_eval.engine._prefixes import Node, Tokens
from nsa_eval.engine._reader import Reader
from nsa_models.families import Rows

# Tokens that keep a GPU busy in one forward, and the part of the cache that prefixes may take until then.
_FULL_FORWARD = 4096
_KEPT_PART = 4


@dataclass(frozen=True, slots=True)
class Member:
    """A sequence whose prefix is read."""

    depth: int
    """Tokens of it that are read."""
    row: int
    """The row that has read them."""
    index: int
    """Its number among all sequences."""


Visit = Callable[[list[Member], Rows | None], None]
"""Told of sequences, and the rows that have read their prefixes; None where nothing is read yet."""


class Traversal:
    """Reads the prefixes of a tree from the top down, the sequences of each before those further down."""

    def __init__(
        self,
        reader: Reader,
        limits: Limits,
        sequences: Sequence[Tokens],
        *,
        wanted: Callable[[int], bool],
        visit: Visit,
        relieve: Callable[[], bool] = lambda: False,
    ) -> None:
        """Nothing is read yet.

        Args:
            reader: Reads.
            limits: What one batch may hold.
            sequences: Token ids of each.
            wanted: Whether anything is to come of a sequence. A prefix without such sequences isn't read.
            visit: Told of sequences as their prefixes are read.
            relieve: Frees memory when there is too little; False when there is nothing to free.
        """
        self.reader, self.limits, self.sequences = reader, limits, sequences
        self.wanted, self.visit, self.relieve = wanted, visit, relieve

    def run(self, node: Node, rows: Rows | None = None) -> None:
        """Visit all below `node`, whose prefix the single row of `rows` has read."""
        if not self._open(node):
            return
        if node.members:
            self.visit([Member(node.depth, 0, index) for index in node.members], rows)
        self._contexts(node, [child for child in node.children if not child.children], rows)
        for child in node.children:
            if child.children and self._open(child):
                [(_, read)] = self._context_batch([child], node.depth, rows)
                self.run(child, read)

    def _open(self, node: Node) -> bool:
        return any(self.wanted(index) for index in node.all_members())

    def _contexts(self, above: Node, contexts: list[Node], rows: Rows | None) -> None:
        """Read many prefixes as one batch, then visit the sequences of all of them."""
        family = self.reader.family
        contexts = sorted(contexts, key=lambda node: -node.depth)
        parts: list[tuple[list[Node], Rows]] = []
        for batch in batches(
            contexts,
            width=lambda node: node.depth - above.depth,
            limits=self.limits,
            extra=above.depth if family.copies else 0,
            equal=not family.ragged,
            packed=family.packs,
            widest=self.reader.widest,
        ):
            if any(self._open(node) for node in batch):
                parts += self._context_batch(batch, above.depth, rows)
                if not family.packs:
                    while parts:
                        self._visit_contexts([parts.pop(0)])
                elif self._enough([node for nodes, _ in parts for node in nodes]):
                    self._visit_contexts(parts)
                    parts = []
        if parts:
            self._visit_contexts(parts)

    def _context_batch(
        self, batch: list[Node], depth: int, rows: Rows | None
    ) -> list[tuple[list[Node], Rows]]:
        try:
            return [(batch, self._read(batch, depth, rows))]
        except torch.OutOfMemoryError as error:
            lacking = str(error)
        # Behind the error, whose frames hold all that the attempt had read: those who decode need that room.
        if not self.relieve() and len(batch) == 1:
            raise torch.OutOfMemoryError(lacking)
        torch.cuda.empty_cache()
        middle = (len(batch) + 1) // 2
        halves = [half for half in (batch[:middle], batch[middle:]) if half]
        return [part for half in halves for part in self._context_batch(half, depth, rows)]

    def _enough(self, nodes: list[Node]) -> bool:
        """Whether what comes after these prefixes fills a forward, or they fill their share of the cache.

        Packed rows are joined at no cost, and few short sequences take a forward as long as many do.
        """
        rest = sum(len(self.sequences[index]) - node.depth for node in nodes for index in node.all_members())
        kept = sum(node.depth for node in nodes)
        return rest >= _FULL_FORWARD or kept >= self.limits.cache_tokens // _KEPT_PART

    def _visit_contexts(self, parts: list[tuple[list[Node], Rows]]) -> None:
        nodes = [node for some, _ in parts for node in some]
        rows = parts[0][1] if len(parts) == 1 else self.reader.join([read for _, read in parts])
        self.visit(
            [Member(node.depth, row, index) for row, node in enumerate(nodes) for index in node.members], rows
        )

    def _read(self, nodes: list[Node], depth: int, rows: Rows | None) -> Rows:
        """One row for each node, having read its prefix; `rows` has read the first `depth` tokens of all."""
        family = self.reader.family
        new = family.empty(len(nodes)) if rows is None else self.reader.select(rows, [0] * len(nodes))
        pieces = [self.sequences[node.all_members()[0]][depth : node.depth] for node in nodes]
        self.reader.read(
            pieces,
            new,
            first=[len(piece) for piece in pieces],
            on_logits=lambda logits, places: None,
        )
        return new
