"""Which blocks queries chose, laid out for the page's inline SVG: queries downwards, blocks to the right."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from itertools import groupby

LEVELS = 4
"""Shades of a cell: quarters of all layers and groups."""
_COLUMN, _ROW = 8.0, 13.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 104.0, 12.0, 20.0, 36.0
_NARROWEST = 330.0
"""Width of the blocks at least, so that few of them are no strip."""
_TICKS = 56.0
"""Room that a block's number takes."""
_GAP = 0.9
"""Share of a row's height that its cells take."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceRow:
    """One query's label."""

    y: float
    text: str
    reply: bool
    """Whether it is a token of the reply, not of the prompt."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Some columns, from edge to edge."""

    x: float
    width: float
    label: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChoicePicture:
    """A picture in pixels. Paths are in cells: a unit is a column, or a row."""

    title: str
    """For those who hear it."""
    shades: tuple[str, ...]
    """A path for each level, weakest first; empty where no cell has it."""
    forced: str
    """A path of the cells that are chosen whatever their scores."""
    rows: tuple[ChoiceRow, ...]
    marked: tuple[Stretch, ...]
    """The columns that hold the answer."""
    shared: tuple[Stretch, ...]
    """Columns that stand for several blocks each."""
    ticks: tuple[Stretch, ...]
    """Numbers of blocks."""
    column: float
    row: float
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    border: float | None
    """Height of the line between prompt and reply."""


def choice_picture(
    *,
    title: str,
    columns: Sequence[tuple[int, int]],
    counts: Sequence[Sequence[int]],
    words: Sequence[str],
    asked: int,
    most: int,
    marked: Collection[int],
    forced: Sequence[Collection[int]],
) -> ChoicePicture:
    """Lay a picture out.

    Args:
        title: What it shows, in a sentence.
        columns: (first block, last block) of each, ascending.
        counts: For each query, how many chose a block of each column.
        words: The queries' tokens.
        asked: How many of the queries are the prompt's; those after them are the reply's.
        most: Layers times groups: as many can choose a block.
        marked: The blocks that hold the answer.
        forced: For each query, the blocks that it has no choice about.

    Raises:
        ValueError: Queries, words and forced blocks, or columns and counts, that don't fit each other.
    """
    if not len(counts) == len(words) == len(forced) or any(len(row) != len(columns) for row in counts):
        raise ValueError(
            f"a picture of {len(counts)} queries and {len(columns)} columns needs a word, a set of forced "
            "blocks and as many counts for each query"
        )
    column = max(_COLUMN, _NARROWEST / len(columns))
    levels: list[list[int]] = []
    for row, own in zip(counts, forced, strict=True):
        levels.append(
            [
                -1 if first == last and first in own else _level(count, most)
                for (first, last), count in zip(columns, row, strict=True)
            ]
        )
    held = [any(first <= block <= last for block in marked) for first, last in columns]
    several = [first != last for first, last in columns]
    height = _ROW * len(counts)
    return ChoicePicture(
        title=title,
        shades=tuple(_path(levels, level) for level in range(1, LEVELS + 1)),
        forced=_path(levels, -1),
        rows=tuple(
            ChoiceRow(y=_TOP + _ROW * (index + 0.75), text=_visible(word), reply=index >= asked)
            for index, word in enumerate(words)
        ),
        marked=tuple(_stretches(held, columns, column)),
        shared=tuple(_stretches(several, columns, column)),
        ticks=tuple(_ticks(columns, column)),
        column=column,
        row=_ROW,
        width=_LEFT + column * len(columns) + _RIGHT,
        height=_TOP + height + _BOTTOM,
        left=_LEFT,
        right=_LEFT + column * len(columns),
        top=_TOP,
        bottom=_TOP + height,
        border=_TOP + _ROW * asked if 0 < asked < len(counts) else None,
    )


def shades_in_words(most: int) -> tuple[str, ...]:
    """How many of all layers and groups each shade stands for: `1 to 2`; nothing where it stands for none."""
    found = []
    for level in range(1, LEVELS + 1):
        inside = [count for count in range(1, most + 1) if _level(count, most) == level]
        ends = sorted({inside[0], inside[-1]}) if inside else []
        found.append(" to ".join(f"{end:,}" for end in ends))
    return tuple(found)


def _level(count: int, most: int) -> int:
    """0 for nothing, then quarters of all that can choose, each up to its upper end."""
    return -(-LEVELS * min(count, most) // most)


def _path(levels: Sequence[Sequence[int]], wanted: int) -> str:
    """The cells of a level as a path, neighbours of a row as one rectangle."""
    parts = []
    for y, row in enumerate(levels):
        x = 0
        for level, run in groupby(row):
            width = len(list(run))
            if level == wanted:
                parts.append(f"M{x} {y}h{width}v{_GAP:g}h-{width}z".replace("0.", "."))
            x += width
    return "".join(parts)


def _stretches(chosen: Sequence[bool], columns: Sequence[tuple[int, int]], column: float) -> list[Stretch]:
    found = []
    at = 0
    for inside, run in groupby(chosen):
        width = len(list(run))
        if inside:
            first, last = columns[at][0], columns[at + width - 1][1]
            label = f"block {first:,}" if first == last else f"blocks {first:,} to {last:,}"
            found.append(Stretch(x=_LEFT + at * column, width=width * column, label=label))
        at += width
    return found


def _ticks(columns: Sequence[tuple[int, int]], column: float) -> list[Stretch]:
    """The numbers of some blocks, apart enough to be read; the first and the last among them."""
    last = len(columns) - 1
    shown: list[int] = []
    for index in range(last + 1):
        near_end = index != last and (last - index) * column < _TICKS
        if (not shown or (index - shown[-1]) * column >= _TICKS) and not near_end:
            shown.append(index)
    if last not in shown:
        shown.append(last)
    return [
        Stretch(x=_LEFT + index * column, width=column, label=f"{columns[index][0]:,}") for index in shown
    ]


def _visible(word: str) -> str:
    """A token with its line breaks written out, and without the space before it."""
    return word.replace("\n", "\u21b5").replace("\t", "\u21e5").strip(" ") or "\u2423"
