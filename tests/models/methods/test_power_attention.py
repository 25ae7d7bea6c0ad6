"""PowerAttention against its definition."""

from __future__ import annotations

import pytest
import torch

from nsa_models.methods import MethodError, make_method
from nsa_models.methods.power_attention import visible_blocks

from .conftest import prompt_sets, random_row


def by_definition(t: int, window: int, block: int) -> set[int]:
    powers = {2**power for power in range(20)}
    keys = set()
    for s in range(t + 1):
        distance = t // block - s // block
        if s < block or distance < window or distance in powers:
            keys.add(s)
    return keys


@pytest.mark.parametrize(("window", "block"), [(1, 1), (2, 3), (5, 2), (3, 16)])
def test_sets_follow_the_definition(window: int, block: int) -> None:
    method = make_method("power-attention", window=window, block=block)
    for head in prompt_sets(method, *random_row(75)):
        assert head == [by_definition(t, window, block) for t in range(75)]
    assert [method.kv_reads(t + 1) for t in range(75)] == [
        len(by_definition(t, window, block)) for t in range(75)
    ]


def test_blocks_of_a_small_case() -> None:
    of_keys = torch.arange(12)
    assert visible_blocks(11 - of_keys, of_keys, 2).nonzero().flatten().tolist() == [0, 3, 7, 9, 10, 11]


def test_ten_blocks_are_read_at_32k() -> None:
    method = make_method("power-attention")
    assert (method.window, method.block) == (5, 256)
    assert method.kv_reads(32_768) == 2560


@pytest.mark.parametrize("option", ["window", "block"])
def test_nothing_to_read_is_refused(option: str) -> None:
    with pytest.raises(MethodError, match=f"power-attention: {option} must be at least 1 .*, got 0"):
        make_method("power-attention", **{option: 0})
