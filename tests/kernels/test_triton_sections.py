"""Which keys the Hopper kernel's tiles hold and its masks leave: its own functions, run as Python."""

import itertools
import os
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from nsa_kernels import BlockGeometry, num_blocks
from nsa_kernels.triton.hopper import parts, sections
from nsa_kernels.triton.hopper.parts import Piece, Sizes

BRANCHES = ("compressed", "window", "forced")


def as_python(*modules: Any) -> SimpleNamespace:
    """The kernel's functions on plain numbers."""
    language = SimpleNamespace(
        where=lambda condition, a, b: a if condition else b,
        maximum=max,
        minimum=min,
        zeros_like=lambda _: 0,
        constexpr=int,
    )
    names: dict[str, Any] = {}
    for module in modules:
        names |= vars(module)
    names["gl"] = language
    for name, value in list(names.items()):
        if hasattr(value, "fn"):
            names[name] = FunctionType(value.fn.__code__, names)
        elif name.isupper() and hasattr(value, "value"):
            names[name] = value.value
    return SimpleNamespace(**names)


CODE = as_python(parts, sections)


def expected_keys(branch: str, position: int, g: BlockGeometry) -> list[int]:
    if branch == "compressed":
        return list(range(num_blocks(position + 1, g)))
    if branch == "window":
        return list(range(max(0, position - g.window + 1), position + 1))
    own = position // g.select_block
    return [t for t in range(position + 1) if t // g.select_block in (0, own - 1, own)]


def tiles_of(section: Any, keys: int) -> list[list[int]]:
    first = (CODE.first_key(section, j, keys) for j in range(section.count))
    return [list(range(at, at + keys)) for at in first]


def seen(section: Any, tiles: list[list[int]], low: int, high: int, select: int) -> list[int]:
    """As the kernel's softmax masks them."""
    keys = []
    for j, tile in enumerate(tiles):
        bounds = (low, high)
        if j < section.apart:
            bounds = (0, select if low >= select and high > 0 else 0)
        whole = 1 <= j < section.whole
        keys += [key for key in tile if whole or bounds[0] <= key < bounds[1]]
    return keys


geometries = st.builds(
    lambda stride, shares, pieces, count, window: BlockGeometry(
        block=stride * shares,
        stride=stride,
        select_block=stride * pieces,
        select_count=count,
        window=window,
    ),
    st.sampled_from([4, 16, 32]),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(3, 16),
    st.one_of(st.integers(1, 70), st.integers(100, 600)),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    geometry=geometries,
    group=st.sampled_from([2, 4, 16, 64]),
    keys=st.sampled_from([64, 128]),
    start=st.one_of(st.just(0), st.integers(0, 1500)),
    queries=st.integers(1, 200),
    padding=st.integers(0, 250),
)
def test_every_row_sees_each_of_its_keys_once(
    geometry: BlockGeometry, group: int, keys: int, start: int, queries: int, padding: int
) -> None:
    rows = 128 // group
    sizes = Sizes(group, rows, geometry.block, geometry.stride, geometry.select_block, geometry.window)
    end = start + queries - padding
    for tile, number in itertools.product(range(-(-queries // rows)), range(len(BRANCHES))):
        first = start + tile * rows
        piece = Piece(tile, 0, 0, start, end, first, min(first + rows, start + queries, end))
        section = CODE.section_at(piece, number, sizes, keys)
        tiles = tiles_of(section, keys)
        assert section.count >= 1
        assert all(tile[0] >= 0 for tile in tiles)
        for query in range(tile * rows, min(tile * rows + rows, queries)):
            real = start + query < end
            low, high = CODE.seen_by(piece, query, real, number, sizes)
            if real:
                found = seen(section, tiles, low, high, geometry.select_block)
                assert sorted(found) == expected_keys(BRANCHES[number], start + query, geometry)
        # What the kernel clears: the last tile, and where it says so that of block 0.
        most, cleared = section.most, {section.count - 1}
        if number and 2 * geometry.select_block + 1 < keys and section.apart:
            cleared.add(0)
        if first < piece.last:
            assert all(j in cleared or tile[-1] < most for j, tile in enumerate(tiles))
