"""Quest by kernels, with extremes kept beside the cache, against its own reference with masks."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from nsa_kernels.pages import PageExtremes
from nsa_models.methods import Attached, Method, MethodError, QueryBlock, attach, make_method
from nsa_models.methods._paged import Paged
from nsa_models.methods.quest import Quest

from .alike import read_by_masks, same
from .conftest import Rows, tokens

# Options under which rows of 41 to 150 tokens have more than they read, but for the last.
CASES: list[dict[str, Any]] = [
    {"budget": 34, "page": 8},
    {"budget": 33, "page": 16, "reading": "kernel"},
    {"budget": 20, "page": 5, "dense_layers": (0,)},
    {"budget": 9, "page": 7, "reading": "kernel"},
    {"budget": 5, "page": 1},
    {"budget": 30, "page": 8, "first": 3, "local": 5},
    {"budget": 38, "page": 4, "first": 8, "local": 1},
    {"budget": 24, "page": 16, "first": 0, "local": 6},
    {"budget": 50, "page": 16, "first": 20, "local": 0},
    {"budget": 400, "page": 16},
    {"budget": 400, "page": 16, "reading": "kernel"},
    {"budget": 400, "page": 16, "first": 30, "local": 100},
]


def quest(options: dict[str, Any], *, fast: bool) -> Quest:
    method = make_method("quest", **{"dense_layers": (), **options}, fast=fast)
    assert isinstance(method, Quest)
    return method


def named(options: dict[str, Any]) -> str:
    return quest(options, fast=False).label


each_case = pytest.mark.parametrize("options", CASES, ids=named)


@pytest.fixture(params=["llama", "qwen3", "decoder"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Each kind of model in float32, with heads that the kernels take and groups of two."""
    return small(make_model, request.param)


def small(make_model: Callable[..., PreTrainedModel], kind: str = "llama") -> PreTrainedModel:
    return make_model(kind, num_hidden_layers=2, head_dim=16).float()


def decoded(
    model: PreTrainedModel, method: Method, lengths: tuple[int, ...], steps: int = 4
) -> tuple[list[Tensor], Attached]:
    """Logits of right-padded rows whose last tokens are decoded and whose first ones come in pieces."""
    many = [tokens(length, seed=seed) for seed, length in enumerate(lengths, 2)]
    with attach(model, method) as attached:
        rows, parts = Rows(model, len(many), attached), []
        for begin, end in pairwise((0, 21, 37, 1000)):
            parts += rows.feed([row[:-steps][begin:end] for row in many])
        for step in range(steps):
            parts += rows.feed([row[len(row) - steps + step][None] for row in many], decode=True)
    return parts, attached


@each_case
@pytest.mark.usefixtures("by_twin")
def test_kept_pages_give_what_masks_give(
    model: PreTrainedModel, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, fast = (quest(options, fast=fast) for fast in (False, True))
    expected = decoded(model, reference, (150, 41, 95))
    monkeypatch.setattr(Quest, "select", read_by_masks)
    found = decoded(model, fast, (150, 41, 95))
    same(found, expected)
    layers = len(found[1].layers)
    ends = [length - step for length in (150, 41, 95) for step in range(4)]
    assert found[1].reads.index.scored == layers * sum(fast.index_reads(end) for end in ends)
    assert found[1].reads.index.rebuilt == layers * (147 + 38 + 92)  # the first step, and no other
    assert expected[1].reads.index.scored == 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", CASES[1]), ("decoder", CASES[0]), ("decoder", CASES[5])],
    ids=lambda value: value if isinstance(value, str) else named(value),
)
@pytest.mark.usefixtures("by_kernels")
def test_kernels_give_what_masks_give(
    make_model: Callable[..., PreTrainedModel], kind: str, options: dict[str, Any]
) -> None:
    model = make_model(kind, num_hidden_layers=1, head_dim=16).float()
    reference, fast = (quest(options, fast=fast) for fast in (False, True))
    found = decoded(model, fast, (66, 47), 2)
    same(found, decoded(model, reference, (66, 47), 2))
    assert found[1].reads.index.rebuilt == 65 + 46


# --- the sets, without a model


def drawn(width: int, page: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Queries [5, 4, 1, 16] and keys [5, 2, width, 16], whole numbers with pages alike: ties."""
    maker = torch.Generator().manual_seed(seed)
    q = torch.randn(5, 4, 1, 16, generator=maker).round()
    k = (torch.randn(5, 2, width, 16, generator=maker) * 2).round()
    k[1, :, page:] = k[1, :, :page].repeat(1, -(-width // page), 1)[:, : width - page]
    k[2, :, 5:] = 1.0
    q[3] = 0.0  # every page scores 0, of either sign
    q[3, 1], k[3, 0] = -0.0, -k[3, 0].abs()
    return q, k


PLACES = [[149, 63, 96, 120, 2], [120, 149, 63, 96, 40], [47, 31, 30, 0, 7]]
"""Positions of the queries: ends of rows in the middle and at the end of pages of 8 and 16."""


def seen(fast: Paged, q: Tensor, k: Tensor, lengths: Tensor, backend: str) -> Tensor:
    """Booleans [B, H, S] of what a step's lists name; what stands behind the rows is poisoned."""
    behind = torch.arange(k.shape[2]) >= lengths[:, None]
    keys = k.masked_fill(behind[:, None, :, None], float("nan")).transpose(1, 2)
    extremes = PageExtremes.of(keys, page=fast.page, lengths=lengths)
    unread = torch.arange(extremes.high.shape[1]) >= -(-lengths[:, None] // fast.page)
    high, low = (x.masked_fill(unread[..., None, None], 1e30) for x in (extremes.high, extremes.low))
    extremes = PageExtremes(high=high, low=low, page=fast.page)
    scored = fast.scored(lengths).int()
    lists = fast.choose(extremes, q[:, :, 0], lengths.int(), scored, backend=backend)
    lists.check()
    index = lists.firsts[..., None] + torch.arange(lists.page)
    used = (torch.arange(lists.firsts.shape[-1]) < lists.counts[..., None])[..., None]
    used = used & (index < lengths[:, None, None, None])
    keep = torch.zeros(*lists.counts.shape, k.shape[2] + 1, dtype=torch.bool)
    keep.scatter_(-1, torch.where(used, index, k.shape[2]).flatten(2).long(), True)
    assert int(lists.reads(q.shape[1], lengths)) == int(keep[..., :-1].sum())
    return keep[..., :-1]


@each_case
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_lists_hold_the_sets_of_the_masks(options: dict[str, Any], backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    reference, fast = (quest(options, fast=fast) for fast in (False, True))
    for seed, places in enumerate(PLACES if backend == "torch" else PLACES[:1]):
        q, k = drawn(max(places) + 3, fast.page, seed=seed)
        positions = torch.tensor(places)[:, None]
        block = QueryBlock(q=q, k=k, positions=positions, scaling=1.0, layer=0)
        found = seen(fast, q, k, positions[:, 0] + 1, backend)
        assert torch.equal(found, reference.select(block)[:, :, 0] & block.visible[:, :, 0])
        for row, place in enumerate(places):
            counts = found[row].sum(-1)
            assert reference.kv_reads_least(place + 1) <= int(counts.min())
            assert int(counts.max()) <= reference.kv_reads(place + 1)
        scored = fast.scored(positions[:, 0] + 1)
        assert (2 * scored).tolist() == [reference.index_reads(place + 1) for place in places]


@each_case
def test_a_row_without_a_token_reads_nothing(options: dict[str, Any]) -> None:
    fast = quest(options, fast=True)
    q, k = drawn(60, fast.page, seed=0)
    lengths = torch.tensor([60, 0, 41, 0, 9])
    assert not seen(fast, q, k, lengths, "torch")[[1, 3]].any()
    assert fast.scored(lengths)[[1, 3]].sum() == 0


@pytest.mark.parametrize("page", [1, 5, 16, 24])
def test_pages_of_any_size_are_fast(page: int) -> None:
    fast = quest({"budget": 300, "page": page}, fast=True)
    assert not fast.simulated
    assert "fast=true" in fast.label
    assert fast.describe()["kernels"]["numerics"] >= 1


def test_kept_extremes_count_as_a_token_a_page() -> None:
    plain, fast = (quest({"budget": 300, "page": 16}, fast=fast) for fast in (False, True))
    assert [plain.kv_kept(count) for count in (1, 32, 33, 1000)] == [1, 32, 33, 1000]
    assert [fast.kv_kept(count) for count in (1, 32, 33, 1000)] == [2, 34, 36, 1063]


def test_without_a_gpu_it_is_refused(make_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(MethodError, match="quest: fast needs a GPU with Triton, bfloat16 or float16"):
        attach(small(make_model), quest(CASES[0], fast=True))
