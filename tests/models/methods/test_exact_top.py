"""Exact-Top against its definition."""

from __future__ import annotations

import random

import pytest
import torch

from nsa_models.methods import MethodError, QueryBlock, keep_top, make_method
from nsa_models.methods._block import attend
from nsa_models.methods._placement import Placement
from nsa_models.methods.exact_top import ExactTop, select


def test_two_best_of_four_share_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    method = ExactTop(budget=2, first=0, local=0)
    block_k, q = logits[None, None, :, None], torch.ones(1, 1, 1, 1, dtype=torch.float64)
    place = Placement.bottom_right(1, 1, 4, q.device)
    weights, read = attend(
        method,
        q,
        block_k,
        torch.eye(4, dtype=torch.float64)[None, None],
        place,
        scaling=1.0,
        layer=0,
        rotate=None,
    )
    expected = torch.tensor([0.2689, 0.0, 0.0, 0.7311], dtype=torch.float64)
    torch.testing.assert_close(weights[0, 0, 0], expected, atol=5e-5, rtol=0)
    assert int(read) == 2


def chosen_by_definition(scores: list[float], t: int, budget: int, first: int, local: int) -> set[int]:
    always = {s for s in range(t + 1) if s < first or s > t - local}
    rest = sorted((s for s in range(t + 1) if s not in always), key=lambda s: (-scores[s], s))
    return always | set(rest[: max(0, budget - len(always))])


@pytest.mark.parametrize(
    ("budget", "first", "local"), [(9, 2, 3), (5, 2, 3), (4, 0, 0), (6, 5, 0), (40, 2, 3)]
)
def test_sets_follow_the_definition_with_ties_to_the_lower_index(budget: int, first: int, local: int) -> None:
    scores = torch.randint(0, 4, (2, 3, 20, 20), generator=torch.Generator().manual_seed(0)).double()
    positions = torch.stack([torch.arange(20), torch.arange(20).flip(0)])
    keep = select(scores, positions, budget=budget, first=first, local=local).expand(2, 3, 20, 20)
    for row in range(2):
        for head in range(3):
            for query, t in enumerate(positions[row].tolist()):
                expected = chosen_by_definition(scores[row, head, query].tolist(), t, budget, first, local)
                assert set(keep[row, head, query].nonzero().flatten().tolist()) == expected


def test_permuting_cached_pairs_leaves_a_step_unchanged() -> None:
    maker = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, n, 8, generator=maker, dtype=torch.float64)
        for heads, n in ((4, 1), (2, 20), (2, 20))
    )
    order = torch.randperm(20, generator=maker)
    method, place = ExactTop(budget=5, first=0, local=0), Placement.bottom_right(1, 1, 20, q.device)

    def step(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(method, q, k, v, place, scaling=0.3, layer=0, rotate=None)[0]

    torch.testing.assert_close(step(k[:, :, order], v[:, :, order]), step(k, v))


def test_keep_top_takes_equal_scores_from_the_left() -> None:
    rng = random.Random(0)
    for _ in range(200):
        width = rng.randint(1, 9)
        scores = [float(rng.randint(0, 3)) for _ in range(width)]
        among = [rng.random() < 0.7 for _ in range(width)]
        count = rng.randint(0, width + 2)
        best = sorted((s for s in range(width) if among[s]), key=lambda s: (-scores[s], s))[:count]
        for given in (count, torch.tensor([count])):
            kept = keep_top(torch.tensor(scores), given, torch.tensor(among))
            assert set(kept.nonzero().flatten().tolist()) == set(best)


def test_keep_top_counts_differ_between_rows() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    kept = keep_top(scores, torch.tensor([[0], [1], [2]]), torch.ones(3, dtype=torch.bool))
    assert kept.tolist() == [[False] * 3, [True, False, False], [True, False, True]]


def test_blocks_of_queries_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, n, 8, generator=maker, dtype=torch.float64)
        for heads, n in ((4, 9), (2, 20), (2, 20))
    )
    method, place = ExactTop(budget=5, first=1, local=1), Placement.bottom_right(2, 9, 20, q.device)

    def run() -> tuple[torch.Tensor, int]:
        out, read = attend(method, q, k, v, place, scaling=0.3, layer=0, rotate=None)
        return out, read.tolist()

    whole, read = run()
    seen: list[tuple[int, ...]] = []
    real = ExactTop.select
    monkeypatch.setattr(
        ExactTop, "select", lambda self, block: seen.append(tuple(block.logits.shape)) or real(self, block)
    )
    monkeypatch.setattr("nsa_models.methods._block._CELLS_CPU", 2 * 4 * 20 * 2)
    pieces, again = run()
    torch.testing.assert_close(pieces, whole)
    assert read == again == [4 * 9 * 5] * 2  # of each row
    assert [shape[2] for shape in seen] == [2, 2, 2, 2, 1]
    assert [shape[3] for shape in seen] == [13, 15, 17, 19, 20]  # later keys are left out


def test_half_precision_chooses_in_float32() -> None:
    # In bfloat16 both products round to 256.
    q = torch.tensor([[[[16.0, 1.0]]]], dtype=torch.bfloat16)
    k = torch.tensor([[[[16.0, 0.25], [16.0, 0.5]]]], dtype=torch.bfloat16)
    v = torch.tensor([[[[1.0], [2.0]]]], dtype=torch.bfloat16)
    place = Placement.bottom_right(1, 1, 2, q.device)
    out, _ = attend(ExactTop(budget=1, first=0, local=0), q, k, v, place, scaling=1.0, layer=0, rotate=None)
    assert out.dtype == torch.bfloat16
    assert out.item() == 2.0


def test_query_without_keys_gives_zero() -> None:
    place = Placement(positions=torch.tensor([[-1]]), real=torch.tensor([[False]]))
    q = k = v = torch.ones(1, 1, 1, 2)
    out, read = attend(
        ExactTop(budget=1, first=0, local=0), q, k, v, place, scaling=1.0, layer=0, rotate=None
    )
    assert out.tolist() == [[[[0.0, 0.0]]]]
    assert int(read) == 0


def test_budget_below_what_is_always_read_is_refused() -> None:
    with pytest.raises(
        MethodError, match=r"exact-top: budget must be at least first \+ local = 640 .*got 639"
    ):
        make_method("exact-top", 639)
    assert make_method("exact-top", 640).kv_reads(10_000) == 640
    with pytest.raises(MethodError, match="exact-top: local must be at least 0 tokens, got -1"):
        make_method("exact-top", 640, local=-1)


def test_block_logits_are_scaled_products_of_each_group() -> None:
    maker = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 3, 4, generator=maker, dtype=torch.float64)
    k = torch.randn(2, 2, 5, 4, generator=maker, dtype=torch.float64)
    block = QueryBlock(q=q, k=k, positions=torch.tensor([[2, 3, 4]]).expand(2, -1), scaling=0.5, layer=0)
    torch.testing.assert_close(block.logits, 0.5 * q @ k.repeat_interleave(3, dim=1).transpose(-1, -2))
