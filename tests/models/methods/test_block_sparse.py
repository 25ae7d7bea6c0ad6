"""Block-sparse prefill against its definition."""

from __future__ import annotations

import pytest
import torch

from nsa_models.methods import MethodError, make_method
from nsa_models.methods.block_sparse import choose

from .conftest import prompt_sets, random_row


def by_definition(q: torch.Tensor, k: torch.Tensor, t: int, block: int, count: int) -> set[int]:
    """Of one head: q [n, d], k [n, d]."""
    own = t // block
    mean = q[own * block : (own + 1) * block].mean(0)
    scores = [float(mean @ k[j * block : (j + 1) * block].mean(0)) for j in range(own + 1)]
    best = sorted(range(own + 1), key=lambda j: (-scores[j], j))[:count]
    return {s for s in range(t + 1) if s // block in best}


@pytest.mark.parametrize(("block", "budget"), [(4, 4), (4, 11), (6, 18), (1, 5)])
def test_sets_follow_the_definition(block: int, budget: int) -> None:
    q, k = random_row(50)
    method = make_method("block-sparse", budget, block=block)
    own_left_out = False
    for head, sets in enumerate(prompt_sets(method, q, k)):
        for t, keys in enumerate(sets):
            assert keys == by_definition(q[0, head], k[0, head // 2], t, block, budget // block)
            own_left_out |= t not in keys
    assert own_left_out  # nothing is forced


def test_ties_go_to_the_lower_block() -> None:
    assert choose(torch.zeros(1, 4, 4), 2)[0].int().tolist() == [
        [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]
    ]  # fmt: skip


def test_budget_is_counted_in_whole_blocks() -> None:
    method = make_method("block-sparse", 6400 + 63)
    assert (method.kv_reads(10_000), method.budget // method.block) == (6400, 100)
    assert method.kv_reads_least(10_000) == 99 * 64 + 10_000 % 64
    with pytest.raises(MethodError, match="block-sparse: budget must be at least one block of 64 KV tokens"):
        make_method("block-sparse", 63)
    with pytest.raises(MethodError, match="block-sparse: block must be at least 1 token, got 0"):
        make_method("block-sparse", 63, block=0)
