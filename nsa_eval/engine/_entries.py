"""Lines that enter: their prompts are read in batches of little padding, up to a first token's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nsa_eval.engine._batching import Limits, batches
from nsa_eval.engine._lines import Line
from nsa_eval.engine._reader import Place, Reader
from nsa_models.families import Rows


class Entry(NamedTuple):
    """A line whose prefix is read."""

    line: Line
    depth: int
    """Tokens of it that are read."""
    row: int
    """Who has read them."""


def read_prompts(
    reader: Reader, limits: Limits, entries: Sequence[Entry], rows: Rows | None
) -> tuple[Rows, Tensor]:
    """Read the rest of each line's prompt, and of its reply where it has one already.

    Args:
        reader: Reads.
        limits: What one batch may hold.
        entries: The lines.
        rows: Who has read the prefixes; None: nobody.

    Returns:
        The rows joined, in order, and their logits [B, V].
    """
    family = reader.family
    parts: list[Rows] = []
    logits: list[Tensor] = []
    if reader.replayed and any(entry.line.length > entry.line.prompt for entry in entries):
        for entry in entries:
            row, last = _replayed(reader, entry, rows)
            parts.append(row)
            logits.append(last)
        return _joined(reader, parts), torch.cat(logits)
    for batch in batches(
        entries,
        width=lambda entry: entry.line.length - entry.depth,
        limits=limits if family.ragged else limits.for_replies(),
        packed=family.packs,
        widest=reader.widest,
    ):
        places = [entry.row for entry in batch]
        new = family.empty(len(batch)) if rows is None else reader.select(rows, places)
        pieces = [entry.line.read()[entry.depth :] for entry in batch]
        found: dict[int, Tensor] = {}

        def collect(made: Tensor, where: list[Place], found: dict[int, Tensor] = found) -> None:
            found.update((row, line) for line, (row, _) in zip(made, where, strict=True))

        reader.read(pieces, new, first=[len(piece) - 1 for piece in pieces], on_logits=collect)
        parts.append(new)
        logits.extend(found[row] for row in range(len(batch)))
    return _joined(reader, parts), torch.stack(logits)


def _joined(reader: Reader, parts: list[Rows]) -> Rows:
    return reader.join(parts) if len(parts) > 1 else parts[0]


def _replayed(reader: Reader, entry: Entry, rows: Rows | None) -> tuple[Rows, Tensor]:
    """One line's row and its logits [1, V], with what it has of its reply fed again step by step.

    A sparse method that acts in decode leaves other keys behind a step than a prompt would.
    """
    tokens, end = entry.line.read(), entry.line.prompt
    new = reader.family.empty(1) if rows is None else reader.select(rows, [entry.row])
    found: list[Tensor] = []
    reader.read(
        [tokens[entry.depth : end]],
        new,
        first=[end - entry.depth - 1],
        on_logits=lambda made, _: found.append(made),
    )
    for token in tokens[end:]:
        found = [reader.step([int(token)], new)]
    return new, found[-1]
