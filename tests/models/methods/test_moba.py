"""MoBA against its definition."""

from __future__ import annotations

import pytest
import torch

from nsa_models.methods import MethodError, make_method
from nsa_models.methods.moba import choose

from .conftest import prompt_sets, random_row


def by_definition(q: torch.Tensor, k: torch.Tensor, t: int, chunk: int, count: int) -> set[int]:
    """Of one head: q [n, d], k [n, d]."""
    own = t // chunk
    gates = {j: float(q[t] @ k[j * chunk : (j + 1) * chunk].mean(0)) for j in range(own)}
    best = sorted(gates, key=lambda j: (-gates[j], j))[: count - 1]
    return {s for s in range(t + 1) if s // chunk in {*best, own}}


@pytest.mark.parametrize(("chunk", "budget"), [(4, 8), (4, 15), (5, 5), (3, 12), (64, 64)])
def test_sets_follow_the_definition(chunk: int, budget: int) -> None:
    q, k = random_row(47)
    method = make_method("moba", budget, chunk=chunk)
    for head, sets in enumerate(prompt_sets(method, q, k)):
        for t, keys in enumerate(sets):
            assert keys == by_definition(q[0, head], k[0, head // 2], t, chunk, budget // chunk)
            assert len(keys) == method.kv_reads(t + 1) == method.kv_reads_least(t + 1)


def test_own_chunk_and_one_more_of_a_small_case() -> None:
    method = make_method("moba", 8, chunk=4)
    prompts = [random_row(10, seed=seed) for seed in range(4)]
    found = {frozenset(sets[9]) for q, k in prompts for sets in prompt_sets(method, q, k)}
    assert found == {frozenset({0, 1, 2, 3, 8, 9}), frozenset({4, 5, 6, 7, 8, 9})}


def test_ties_go_to_the_lower_chunk() -> None:
    scores = torch.tensor([2.0, 5.0, 2.0, 2.0, 0.0])[None, None, None]
    assert choose(scores, torch.tensor([[16]]), 4, 3).flatten().tolist() == [True, True, False, False, True]


def test_authors_topk_is_a_budget_of_whole_chunks() -> None:
    method = make_method("moba", "48k")
    assert (method.chunk, method.budget // method.chunk) == (4096, 12)
    assert method.kv_reads(128 * 1024) == 12 * 4096
    with pytest.raises(MethodError, match="moba: budget must be at least one chunk of 4096 KV tokens"):
        make_method("moba", 4095)
    with pytest.raises(MethodError, match="moba: chunk must be at least 1 token, got 0"):
        make_method("moba", 8, chunk=0)
