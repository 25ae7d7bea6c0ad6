import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_kernels import BlockGeometry
from nsa_kernels import reference as naive
from nsa_kernels.selection import all_blocks, block_importance, blocks_to_mask, select_blocks

PAPER = BlockGeometry()
SMALL = BlockGeometry(block=8, stride=4, select_block=8, select_count=4, window=12)


@pytest.mark.parametrize(
    "geometry",
    [
        SMALL,
        PAPER,
        BlockGeometry(block=4, stride=4, select_block=4),
        BlockGeometry(block=12, stride=4, select_block=8),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 2, 5, 37])
def test_importance_is_the_double_sum(geometry: BlockGeometry, count: int) -> None:
    p = torch.rand(3, count, dtype=torch.float64)
    blocks = -(-((count - 1) * geometry.stride + geometry.block) // geometry.select_block) if count else 1
    ours = block_importance(p, geometry, blocks)
    for row, expected in zip(ours, p, strict=True):
        assert row.tolist() == pytest.approx(naive.importance(expected.tolist(), blocks, geometry))


def test_importance_weights_of_the_papers_geometry() -> None:
    """l = 2d and l' = 4d: a block weighs the five compressed keys that overlap it 1, 2, 2, 2, 1."""
    weights = [block_importance(torch.eye(12)[i], PAPER, 3)[1].item() for i in range(12)]
    assert weights == [0, 0, 0, 1, 2, 2, 2, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_importance_goes_to_the_lower_index(dtype: torch.dtype) -> None:
    importance = torch.tensor([0.0, 0.5, 0.7, 0.5, 0.5, 0.5, 0.0, 0.0], dtype=dtype)
    chosen = select_blocks(importance, torch.tensor(7 * 64), BlockGeometry(select_count=6))
    assert chosen.tolist() == [0, 1, 2, 3, 6, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thousands_of_ties_keep_the_lowest(dtype: torch.dtype) -> None:
    importance = torch.zeros(3, 5000, dtype=dtype)
    chosen = select_blocks(importance, torch.tensor([4999 * 64] * 3), PAPER)
    assert chosen.tolist() == [[*range(14), 4998, 4999]] * 3


def test_the_smallest_difference_decides() -> None:
    importance = torch.full((8,), 0.5)
    importance[4] = torch.nextafter(importance[4], torch.tensor(1.0))
    chosen = select_blocks(importance, torch.tensor(7 * 64), BlockGeometry(select_count=4))
    assert chosen.tolist() == [0, 4, 6, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("first", "last", "chosen"),
    [
        (1, 2, [0, 3, 4, 5]),
        (0, 1, [1, 2, 3, 5]),
        (2, 1, [0, 1, 3, 5]),
        (0, 4, [2, 3, 4, 5]),
    ],
)
def test_the_geometry_says_which_blocks_are_forced(
    first: int, last: int, chosen: list[int], dtype: torch.dtype
) -> None:
    importance = torch.tensor([0.0, 0.2, 0.1, 0.3, 0.0, 0.0, 9.0], dtype=dtype)
    geometry = BlockGeometry(select_count=4, first_blocks=first, last_blocks=last)
    assert select_blocks(importance, torch.tensor(5 * 64 + 1), geometry).tolist() == chosen
    assert naive_choice(importance, geometry) == chosen


def naive_choice(importance: torch.Tensor, geometry: BlockGeometry) -> list[int]:
    """The oracle's, with one compressed key to a selection block."""
    alike = dataclasses.replace(geometry, block=64, stride=64)
    return naive.select(importance.tolist(), 5 * 64 + 1, alike)


def test_forced_blocks_need_no_importance() -> None:
    importance = torch.tensor([0.0, 9.0, 9.0, 9.0, 0.0, 0.0])
    chosen = select_blocks(importance, torch.tensor(5 * 64 + 63), BlockGeometry(select_count=4))
    assert chosen.tolist() == [0, 1, 4, 5]


def test_unused_slots_come_last() -> None:
    chosen = select_blocks(torch.rand(4, 9), torch.tensor([0, 63, 64, 200]), PAPER)
    assert chosen[0].tolist() == [0] + [-1] * 15
    assert chosen[1].tolist() == [0] + [-1] * 15
    assert chosen[2].tolist() == [0, 1] + [-1] * 14
    assert chosen[3].tolist() == [0, 1, 2, 3] + [-1] * 12
    assert chosen.dtype == torch.int32


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    # Few distinct values: most draws hold ties.
    scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1e-30]), min_size=1, max_size=12),
    offset=st.integers(0, 7),
    count=st.integers(3, 8),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_the_rule(scores: list[float], offset: int, count: int, dtype: torch.dtype) -> None:
    geometry = BlockGeometry(block=8, stride=8, select_block=8, select_count=count)
    t = (len(scores) - 1) * 8 + offset
    chosen = select_blocks(torch.tensor(scores, dtype=dtype), torch.tensor(t), geometry)
    # With l = d = l' the importance of a block is the probability of its one compressed key.
    expected = naive.select(scores, t, geometry)
    assert chosen.tolist() == expected + [-1] * (count - len(expected))


def test_all_blocks_is_the_selection_before_the_reach() -> None:
    positions = torch.arange(SMALL.reach)
    importance = torch.rand(SMALL.reach, SMALL.num_select_blocks(SMALL.reach))
    assert torch.equal(all_blocks(positions, SMALL), select_blocks(importance, positions, SMALL))


def test_mask_shows_the_chosen_blocks_up_to_the_token() -> None:
    blocks = torch.tensor([[0, 2, -1, -1], [0, 1, 3, -1]], dtype=torch.int32)
    positions = torch.tensor([18, 27])
    mask = blocks_to_mask(blocks, positions, 30, SMALL)
    assert mask[0].nonzero().flatten().tolist() == [*range(8), 16, 17, 18]
    assert mask[1].nonzero().flatten().tolist() == [*range(16), 24, 25, 26, 27]
