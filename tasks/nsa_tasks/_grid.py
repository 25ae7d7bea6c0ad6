"""An order of a grid's documents whose every beginning is an even sample of the grid."""

import math
from collections.abc import Sequence


def even_order(extents: Sequence[int]) -> list[int]:
    """Order the documents of a grid so that the first n, for any n, are spread evenly over its rows.

    Of each axis (lengths, depths) no value then has two documents more than another, and no cell has two more
    than another. Documents are numbered as the grid is written out, the last axis fastest.

    Args:
        extents: Of each axis, and last the documents of a cell.
    """
    *axes, per_cell = extents
    cells = [0]
    for extent in axes:
        cells = _combined(cells, extent)
    return [cell * per_cell + i for i in range(per_cell) for cell in cells]


def _combined(rows: list[int], columns: int) -> list[int]:
    """Walk rows and columns together, both round and round, with a step aside after each full turn.

    One turn of lcm(rows, columns) steps meets each pair at most once (Chinese remainder theorem); the step
    aside leads to the pairs that the turns before have left out.
    """
    spread = _spread(columns)
    turn = math.lcm(len(rows), columns)
    return [
        rows[step % len(rows)] * columns + spread[(step + step // turn) % columns]
        for step in range(len(rows) * columns)
    ]


def _spread(count: int) -> list[int]:
    """0 to count - 1, each as far as can be from those before it: both ends, the middle, the quarters."""
    order = [0, count - 1][:count]
    gaps = [(0, count - 1)]
    while len(order) < count:
        low, high = max(gaps, key=lambda gap: gap[1] - gap[0])
        gaps.remove((low, high))
        middle = (low + high) // 2
        order.append(middle)
        gaps += [(low, middle), (middle, high)]
    return order
