import dataclasses

import pytest

from nsa_kernels import BlockGeometry, num_blocks


def test_defaults_are_the_papers() -> None:
    g = BlockGeometry()
    assert (g.block, g.stride, g.select_block, g.select_count, g.window) == (32, 16, 64, 16, 512)
    assert g.reach == 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 0}, "stride must be a positive integer, got 0"),
        ({"window": -1}, "window must be a positive integer, got -1"),
        ({"block": 32.0}, "block must be a positive integer, got 32.0"),
        ({"block": True}, "block must be a positive integer, got True"),
        ({"block": 40}, "stride must divide block: 40 is no multiple of 16"),
        ({"select_block": 40}, "stride must divide select_block: 40"),
        ({"select_count": 2}, "select_count must be at least 3"),
        ({"first_blocks": -1}, "first_blocks must be an integer from 0 on, got -1"),
        ({"last_blocks": 0}, "last_blocks must be a positive integer, got 0"),
        ({"select_count": 4, "first_blocks": 3}, r"at least 5 \(the first 3 and, .* the last 2 are always"),
    ],
)
def test_bad_size_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockGeometry(**changes)


def test_frozen_and_keyword_only() -> None:
    with pytest.raises(TypeError):
        BlockGeometry(32)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        BlockGeometry().block = 16  # type: ignore[misc]


def test_num_blocks_counts_blocks_that_fit() -> None:
    g = BlockGeometry(block=8, stride=4, select_block=8)
    for length in range(50):
        fitting = [i for i in range(50) if i * 4 + 8 <= length]
        assert num_blocks(length, g) == len(fitting)


def test_num_select_blocks_counts_blocks_that_start() -> None:
    g = BlockGeometry(block=8, stride=4, select_block=8)
    for length in range(50):
        assert g.num_select_blocks(length) == len({t // 8 for t in range(length)})


def test_what_is_forced_is_the_papers_or_not() -> None:
    assert BlockGeometry().forced_blocks == 3
    assert BlockGeometry().forces_as_paper
    assert BlockGeometry(select_count=1, first_blocks=0, last_blocks=1).forced_blocks == 1
    assert not BlockGeometry(first_blocks=0, last_blocks=3).forces_as_paper
