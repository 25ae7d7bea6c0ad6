"""FlexPrefill against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from nsa_models.methods import MethodError, make_method
from nsa_models.methods import flexprefill as module
from nsa_models.methods._planned import cover
from nsa_models.methods.flexprefill import heaviest, root_divergence

from .conftest import prompt_sets, random_row

BLOCK = 4


def means(x: torch.Tensor) -> list[torch.Tensor]:
    return [x[at : at + BLOCK].mean(0) for at in range(0, len(x), BLOCK)]


def covering(values: list[float], gamma: float) -> int:
    total, count = 0.0, 0
    for value in sorted(values, reverse=True):
        total += value
        if total > gamma:
            break
        count += 1
    return count + 1


def largest(values: list[float], count: int) -> list[int]:
    """Indices of the largest, the first index always."""
    return sorted(range(len(values)), key=lambda i: (i > 0, -values[i], i))[:count]


def blocks_by_definition(
    q: torch.Tensor, k: torch.Tensor, *, gamma: float, tau: float, floor: int, covered: int
) -> tuple[set[tuple[int, int]], bool]:
    """Blocks (of queries, of keys) of one head that isn't dense, and whether it is query-aware; scale 1/2."""
    n, blocks = len(q), math.ceil(len(q) / BLOCK)
    columns, offsets = [0.0] * n, [0.0] * n
    for t in range(n - BLOCK, n):
        for s, weight in enumerate((0.5 * (k[: t + 1] @ q[t])).softmax(0).tolist()):
            columns[s] += weight / BLOCK
            offsets[t - s] += weight / BLOCK
    counts = [
        min(max(covering(values, gamma) // covered + 1, floor), blocks) for values in (columns, offsets)
    ]
    by_column = [sum(columns[j * BLOCK : (j + 1) * BLOCK]) for j in range(blocks)]
    # Blocks of distances are cut from the farthest, n - 1, on.
    far = offsets[::-1]
    by_offset = [sum(far[j * BLOCK : (j + 1) * BLOCK]) for j in range(blocks)][::-1]
    key_means = torch.stack(means(k))
    predicted = (0.5 * (key_means @ q[n - BLOCK :].mean(0))).softmax(0).tolist()
    middle = [(p + c) / 2 for p, c in zip(predicted, by_column, strict=True)]
    divergence = sum(
        x * math.log(x / m) / 2
        for values in (predicted, by_column)
        for x, m in zip(values, middle, strict=True)
    )
    aware = math.sqrt(divergence) < tau
    if aware:
        counts = [floor, floor]
    chosen = {(i, j) for j in largest(by_column, counts[0]) for i in range(j, blocks)}
    chosen |= {(i, i - o) for o in largest(by_offset, counts[1]) for i in range(o, blocks)}
    if aware:
        scored = []
        for i, mean in enumerate(means(q)):
            row = (0.5 * (key_means[: i + 1] @ mean)).softmax(0).tolist()
            scored += [(-weight, i, j) for j, weight in enumerate(row)]
        total = 0.0
        for weight, i, j in sorted(scored):
            total -= weight
            if total > gamma * blocks:
                break
            chosen.add((i, j))
    return chosen, aware


# The authors' 128 tokens a block of what is covered would make every count 1 here.
@pytest.mark.parametrize("covered", [128, 3])
@pytest.mark.parametrize("count", [40, 47])
@pytest.mark.parametrize(("gamma", "tau", "least"), [(0.5, 0.0, 3), (0.8, 0.15, 6), (0.3, 1.0, 3)])
def test_sets_follow_the_definition(
    gamma: float, tau: float, least: int, count: int, covered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COVERED", covered)
    method = make_method("flexprefill", gamma=gamma, tau=tau, least=least, block=BLOCK)
    aware = set()
    for seed in range(2):
        q, k = random_row(count, seed=seed)
        for head, sets in enumerate(prompt_sets(method, q, k)):
            chosen, is_aware = blocks_by_definition(
                q[0, head],
                k[0, head // 2],
                gamma=gamma,
                tau=tau,
                floor=math.ceil(least / BLOCK),
                covered=covered,
            )
            aware.add(is_aware)
            for t, keys in enumerate(sets):
                assert keys == {s for s in range(t + 1) if (t // BLOCK, s // BLOCK) in chosen}
    assert aware == {0.0: {False}, 0.15: {False, True}, 1.0: {True}}[tau]


def test_cover_includes_the_weight_that_crosses_and_grows_with_gamma() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    assert [int(cover(weights, gamma)) for gamma in (0.75, 0.8)] == [2, 3]
    spread = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)).softmax(-1)
    counts = torch.stack([cover(spread, step / 20) for step in range(20)])
    assert (counts.diff(dim=0) >= 0).all()
    assert (counts >= 1).all()


def test_query_aware_blocks_stop_before_the_share_is_crossed() -> None:
    weights = torch.tensor([[[1.0, 0.0], [0.4, 0.6]]], dtype=torch.float64)
    assert heaviest(weights, 0.7)[0].tolist() == [[True, False], [False, False]]  # 1.0 of 1.4
    assert heaviest(weights, 0.8)[0].tolist() == [[True, False], [False, True]]  # 1.6 of 1.6


def test_divergence_is_a_distance_that_zeros_do_not_break() -> None:
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert root_divergence(p, p) == 0
    torch.testing.assert_close(root_divergence(p, q), torch.tensor(math.sqrt(math.log(2))))


def test_prompts_of_up_to_the_least_budget_are_dense() -> None:
    method = make_method("flexprefill", gamma=0.1, tau=0.0, least=21, block=BLOCK)
    for count, dense in ((8, True), (24, True), (60, False)):
        sets = prompt_sets(method, *random_row(count))
        assert all(head == [set(range(t + 1)) for t in range(count)] for head in sets) == dense


def test_shares_out_of_range_are_refused() -> None:
    for options, message in (
        ({"gamma": 1}, "gamma must be above 0 and below 1, got 1.0"),
        ({"tau": 1.5}, "tau must be between 0 and 1, got 1.5"),
        ({"least": 0}, "least must be at least 1 token"),
        ({"block": 0}, "block must be at least 1 token"),
    ):
        with pytest.raises(MethodError, match=f"flexprefill: {message}"):
            make_method("flexprefill", **options)
