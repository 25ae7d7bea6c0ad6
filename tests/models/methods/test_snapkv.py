"""SnapKV and Ada-SnapKV against their definitions, read in plain Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nsa_models.methods import MethodError, make_method
from nsa_models.methods._window import pooled

from .conftest import as_sets, causal_weights, random_row, read_sets


def pool_by_hand(scores: list[float], kernel: int, kind: str) -> list[float]:
    """Each score with its neighbours; an average divides by the whole kernel, at the edges too."""
    half, out = kernel // 2, []
    for i in range(len(scores)):
        near = [scores[j] for j in range(i - half, i + half + 1) if 0 <= j < len(scores)]
        out.append(sum(near) / kernel if kind == "avg" else max(near))
    return out


def best(scores: list[float], count: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda s: (-scores[s], s))[:count])


def kept_by_snapkv(weights: Tensor, capacity: int, window: int, kernel: int, kind: str) -> set[int]:
    """Keys of a prompt that one head keeps; weights [N, N]."""
    length = len(weights)
    if length <= capacity:
        return {*range(length)}
    sums = [sum(float(weights[t, s]) for t in range(length - window, length)) for s in range(length - window)]
    chosen = best(pool_by_hand(sums, kernel, kind), capacity - window)
    return chosen | {*range(length - window, length)}


@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize(
    ("prompt", "capacity", "window", "kernel"), [(40, 12, 4, 5), (40, 9, 8, 3), (9, 9, 4, 3)]
)
def test_sets_follow_the_definition_and_later_tokens_stay(
    kind: str, prompt: int, capacity: int, window: int, kernel: int
) -> None:
    q, k = random_row(prompt + 5)
    method = make_method("snapkv", capacity, window=window, kernel=kernel, pool=kind)
    weights = causal_weights(q[:, :, :prompt], k[:, :, :prompt])
    expected = [kept_by_snapkv(weights[head], capacity, window, kernel, kind) for head in range(4)]
    for pieces in ([], [prompt - 1, 1], [1] * prompt):
        found = read_sets(method, q, k, prompt=prompt, pieces=pieces)[0]
        for t in range(prompt, prompt + 5):
            assert as_sets(found[t]) == [kept | {*range(prompt, t + 1)} for kept in expected]
            assert method.stated_reads(t + 1, prompt=prompt, layer=0)[0] == len(as_sets(found[t])[0])


def test_pooled_scores_of_a_small_case() -> None:
    scores = torch.tensor([[0.6, 0.1, 0.2, 0.5]])
    smooth = pooled(scores, 3, "avg")
    torch.testing.assert_close(smooth, torch.tensor([[0.7, 0.9, 0.8, 0.7]]) / 3)
    assert smooth[0].topk(2).indices.tolist() == [1, 2]  # the best by itself, 0, drops out
    assert pooled(scores, 3, "max")[0].tolist() == pytest.approx([0.6, 0.6, 0.5, 0.5])


def test_a_prompt_within_the_budget_is_dense() -> None:
    q, k = random_row(20)
    found = read_sets(make_method("snapkv", 16, window=4), q, k, prompt=16)[0]
    assert as_sets(found[19]) == [{*range(20)}] * 4
    found = read_sets(make_method("snapkv", 15, window=4), q, k, prompt=16)[0]
    assert [len(keys) for keys in as_sets(found[19])] == [19] * 4


def kept_by_ada(
    weights: Tensor, capacity: int, window: int, kernel: int, local: int, first: int
) -> list[set[int]]:
    """Keys that each of two KV heads keeps; weights [4, N, N]."""
    length = weights.shape[1]
    scores = []
    for group in (0, 1):
        highest = [
            max(
                float(weights[head, t, s])
                for head in (2 * group, 2 * group + 1)
                for t in range(length - window, length)
            )
            for s in range(length)
        ]
        smooth = pool_by_hand(highest, kernel, "avg")
        scores.append(
            [float("inf") if s < first or s >= length - local else smooth[s] for s in range(length)]
        )
    least = max(int(0.2 * capacity), local + first)
    kept = [best(one, least) for one in scores]
    rest = [(-scores[g][s], g, s) for g in (0, 1) for s in range(length) if s not in kept[g]]
    for _, group, s in sorted(rest)[: 2 * (capacity - least)]:
        kept[group].add(s)
    return kept


@pytest.mark.parametrize(("capacity", "local", "first"), [(12, 3, 1), (20, 2, 0), (6, 4, 2)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_heads_share_their_budgets(capacity: int, local: int, first: int, seed: int) -> None:
    q, k = random_row(44, seed=seed)
    method = make_method("ada-snapkv", capacity, window=6, kernel=3, local=local, first=first)
    expected = kept_by_ada(causal_weights(q[:, :, :40], k[:, :, :40]), capacity, 6, 3, local, first)
    found = read_sets(method, q, k, prompt=40, pieces=[30, 10])[0]
    for t in range(40, 44):
        later = {*range(40, t + 1)}
        assert as_sets(found[t]) == [expected[group] | later for group in (0, 0, 1, 1)]
        # The budget exactly, over the heads of the layer.
        assert int(found[t].sum()) == 4 * (capacity + t - 39)


def test_heads_of_unequal_need_keep_unequal_numbers() -> None:
    q, k = random_row(44)
    k = k.clone()
    k[:, 1] *= 4  # sharper attention, higher maxima
    found = read_sets(make_method("ada-snapkv", 12, window=6, kernel=3, local=3, first=1), q, k, prompt=40)[0]
    one, _, two, _ = (len(keys) for keys in as_sets(found[40]))
    assert one < 13 < two


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("snapkv", {"budget": 32}, "budget must be above window = 32"),
        ("snapkv", {"budget": 64, "kernel": 4}, "kernel must be odd: .*, got 4"),
        ("snapkv", {"budget": 64, "window": 0}, "window must be at least 1 query"),
        ("snapkv", {"budget": 64, "pool": "mean"}, "pool must be one of avg, max"),
        ("ada-snapkv", {"budget": 131}, r"budget must be at least first \+ local = 132"),
        ("ada-snapkv", {"budget": 500, "least_share": 1.5}, "least_share must be within 0 and 1"),
        ("ada-snapkv", {"budget": 500, "local": -1}, "local must be at least 0 tokens"),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=f"{name}: {message}"):
        make_method(name, **options)
