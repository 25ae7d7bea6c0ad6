"""Quest by kernels, with extremes kept beside the cache, against its own reference with masks."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from nsa_kernels.blocks import PageLists
from nsa_kernels.pages import PageExtremes
from nsa_models.methods import Attached, Method, MethodError, QueryBlock, _paged, attach, make_method
from nsa_models.methods._beside import Allocation
from nsa_models.methods._listed import BACKENDS
from nsa_models.methods._paged import Paged
from nsa_models.methods.quest import Quest

from .conftest import Rows, tokens
from .test_waits import Asked

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
CLOSE = {"rtol": 2e-4, "atol": 2e-4}


def quest(options: dict[str, Any], *, fast: bool) -> Quest:
    method = make_method("quest", **{"dense_layers": (), **options}, fast=fast)
    assert isinstance(method, Quest)
    return method


def named(options: dict[str, Any]) -> str:
    return quest(options, fast=False).label


each_case = pytest.mark.parametrize("options", CASES, ids=named)


@pytest.fixture
def by_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages on a CPU, by their plain twin."""
    monkeypatch.setitem(BACKENDS, "cpu", "torch")


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages on a CPU, by the kernels in Triton's interpreter."""
    pytest.importorskip("triton")
    monkeypatch.setitem(BACKENDS, "cpu", "triton")


@pytest.fixture(params=["llama", "qwen3", "decoder"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Each kind of model in float32, with heads that the kernels take and groups of two."""
    return small(make_model, request.param)


@pytest.fixture(params=["llama", "decoder"])
def either(request: pytest.FixtureRequest, make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """A cache that is a new tensor in each step, and one that is written in place."""
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


def same(one: tuple[list[Tensor], Attached], two: tuple[list[Tensor], Attached]) -> None:
    for found, expected in zip(one[0], two[0], strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert one[1].reads.prefill == two[1].reads.prefill
    assert one[1].reads.decode == two[1].reads.decode


def read_by_masks(*_: object) -> Tensor:
    raise AssertionError("a mask was asked for")


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


@pytest.mark.usefixtures("by_twin")
def test_many_steps_cross_pages_and_outgrow_their_room(
    either: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_paged, "_SPARE_TOKENS", 3)
    reference, fast = (quest(CASES[0], fast=fast) for fast in (False, True))
    found = decoded(either, fast, (90, 77), 38)
    same(found, decoded(either, reference, (90, 77), 38))
    # The decoder's buffers grow by half, into new memory, twice.
    most = 1 if either.config.model_type == "llama" else 3
    assert found[1].reads.index.rebuilt <= most * 2 * (90 + 77)


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


# --- whose cache it is


class Story:
    """One way of using a model under a method: what it does to caches, and the logits of its steps."""

    def __init__(self, model: PreTrainedModel, attached: Attached) -> None:
        self.model, self.attached = model, attached
        self.logits: list[Tensor] = []
        self.rebuilt: list[int] = []

    @torch.no_grad()
    def prompt(self, ids: Tensor, cache: Any = None) -> Any:
        with self.attached.prefilling():
            return self.model(ids, past_key_values=cache, use_cache=True).past_key_values

    @torch.no_grad()
    def steps(self, cache: Any, count: int = 2, seed: int = 9) -> Any:
        rows = (cache.layers[0].keys if self.own(cache) else cache.layers[0].buffers["k"]).shape[0]
        for step in range(count):
            before = self.attached.reads.index.rebuilt
            with self.attached.decoding():
                ids = torch.stack([tokens(1, seed=seed + 10 * step + row) for row in range(rows)])
                out = self.model(ids, past_key_values=cache, use_cache=True)
            self.logits.append(out.logits)
            self.rebuilt.append(self.attached.reads.index.rebuilt - before)
            cache = out.past_key_values
        return cache

    @staticmethod
    def own(cache: Any) -> bool:
        return isinstance(cache, DynamicCache)


def many(rows: int, length: int = 60, seed: int = 0) -> Tensor:
    return torch.stack([tokens(length, seed=seed + row) for row in range(rows)])


def reordered(story: Story) -> None:
    cache = story.steps(story.prompt(many(3)))
    cache.reorder_cache(torch.tensor([1, 0, 2]))
    story.steps(cache)


def reordered_twice_and_back_to_an_old_address(story: Story) -> None:
    cache = story.steps(story.prompt(many(3)))
    for _ in range(4):
        cache.reorder_cache(torch.tensor([1, 2, 0]))
    story.steps(cache)


def rows_leave(story: Story) -> None:
    cache = story.steps(story.prompt(many(3)))
    cache.batch_select_indices(torch.tensor([2, 0]))
    story.steps(cache)


def rows_are_repeated(story: Story) -> None:
    cache = story.steps(story.prompt(many(1)))
    cache.batch_repeat_interleave(3)
    story.steps(cache)


def cut_back(story: Story) -> None:
    cache = story.steps(story.prompt(many(2)), 4)
    cache.crop(-3)
    story.steps(cache, seed=5)


def cut_back_by_the_last_token(story: Story) -> None:
    cache = story.steps(story.prompt(many(2)), 2)
    cache.crop(-1)
    story.steps(cache, seed=5)


def cut_back_and_read_on_to_where_it_was(story: Story) -> None:
    cache = story.steps(story.prompt(many(2)), 4)
    cache.crop(-30)
    story.steps(story.prompt(many(2, 30, seed=70), cache))


def a_prompt_goes_on_behind_steps(story: Story) -> None:
    cache = story.steps(story.prompt(many(2)))
    story.steps(story.prompt(many(2, 7, seed=70), cache))


def two_caches_by_turns(story: Story) -> None:
    one, two = story.prompt(many(2)), story.prompt(many(2, seed=50))
    for seed in (1, 2):
        one, two = story.steps(one, seed=seed), story.steps(two, seed=seed)


def a_copy_goes_its_own_way(story: Story) -> None:
    cache = story.steps(story.prompt(many(2)))
    twin = copy.deepcopy(cache)
    story.steps(cache, seed=1)
    story.steps(twin, seed=2)


def another_prompt_is_read_in_between(story: Story) -> None:
    cache = story.steps(story.prompt(many(2)))
    story.prompt(many(2, 62, seed=50))
    story.steps(cache)


def another_cache_of_the_same_shape(story: Story) -> None:
    cache = story.steps(story.prompt(many(2)))
    del cache
    story.steps(story.prompt(many(2, 62, seed=50)))


STORIES: list[tuple[Callable[[Story], None], list[bool]]] = [
    (reordered, [True, False, True, False]),
    (reordered_twice_and_back_to_an_old_address, [True, False, True, False]),
    (rows_leave, [True, False, True, False]),
    (rows_are_repeated, [True, False, True, False]),
    (cut_back, [True, False, False, False, True, False]),
    (cut_back_by_the_last_token, [True, False, True, False]),
    (cut_back_and_read_on_to_where_it_was, [True, False, False, False, True, False]),
    (a_prompt_goes_on_behind_steps, [True, False, True, False]),
    (two_caches_by_turns, [True, False] * 4),
    (a_copy_goes_its_own_way, [True, False, False, False, True, False]),
    (another_prompt_is_read_in_between, [True, False, False, False]),
    (another_cache_of_the_same_shape, [True, False, True, False]),
]


@pytest.mark.parametrize(("tell", "anew"), STORIES, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.usefixtures("by_twin")
def test_whatever_becomes_of_a_cache_the_pages_are_its_own(
    either: PreTrainedModel, tell: Callable[[Story], None], anew: Sequence[bool]
) -> None:
    stories = []
    for fast in (False, True):
        with attach(either, quest(CASES[0], fast=fast)) as attached:
            stories.append(Story(either, attached))
            tell(stories[-1])
    for found, expected in zip(stories[1].logits, stories[0].logits, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert stories[1].attached.reads.decode == stories[0].attached.reads.decode
    assert [count > 0 for count in stories[1].rebuilt] == list(anew)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.usefixtures("by_twin")
def test_generate_keeps_the_pages_of_padded_prompts(either: PreTrainedModel, rows: int) -> None:
    ids = many(rows)
    mask = (torch.arange(60) >= torch.tensor([9 * row for row in range(rows)])[:, None]).long()
    found = []
    for fast in (False, True):
        with attach(either, quest(CASES[0], fast=fast), auto_phase="generate") as attached:
            out = either.generate(
                ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            found.append((list(out.logits), attached))
    same(found[1], found[0])
    assert found[1][1].reads.index.rebuilt == 2 * (int(mask.sum()) + rows)  # at the first step of each layer


@pytest.mark.usefixtures("by_twin")
def test_beams_are_reordered_with_their_pages(make_model: Callable[..., PreTrainedModel]) -> None:
    model, found = small(make_model), []
    for fast in (False, True):
        with attach(model, quest(CASES[0], fast=fast), auto_phase="generate") as attached:
            out = model.generate(
                many(2), max_new_tokens=12, num_beams=4, do_sample=False, num_return_sequences=4,
                output_scores=True, return_dict_in_generate=True,
            )  # fmt: skip
            found.append((out.sequences, out.sequences_scores, attached.reads.decode))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], **CLOSE)
    assert found[0][2] == found[1][2]


@pytest.mark.usefixtures("by_twin")
def test_a_row_that_a_mask_cuts_otherwise_is_looked_at_anew(
    make_model: Callable[..., PreTrainedModel],
) -> None:
    """As many tokens in the same cache, of which the mask hides another one than before."""
    model, logits, rebuilt = small(make_model), [], []
    masks = torch.ones(3, 1, 63, dtype=torch.long)
    masks[0, :, 4], masks[1, :, 4], masks[2, :, 30] = 0, 0, 0
    for fast in (False, True):
        with attach(model, quest(CASES[0], fast=fast)) as attached, torch.no_grad():
            cache = Story(model, attached).prompt(many(1))
            for step, mask in enumerate(masks):
                with attached.decoding():
                    out = model(
                        tokens(1)[None], past_key_values=cache, use_cache=True,
                        attention_mask=mask[:, : 61 + step], position_ids=torch.tensor([[60 + step]]),
                    )  # fmt: skip
                logits.append(out.logits)
                rebuilt.append(attached.reads.index.rebuilt)
    torch.testing.assert_close(logits[3:], logits[:3], **CLOSE)
    assert rebuilt[3:] == [2 * 60, 2 * 60, 2 * (60 + 62)]


@pytest.mark.usefixtures("by_twin")
def test_several_tokens_in_a_step_choose_one_by_one(either: PreTrainedModel) -> None:
    found = []
    for fast in (False, True):
        with attach(either, quest(CASES[0], fast=fast)) as attached, torch.no_grad():
            story = Story(either, attached)
            cache = story.steps(story.prompt(many(2)))
            with attached.decoding():
                out = either(many(2, 3, seed=70), past_key_values=cache, use_cache=True)
            story.logits.append(out.logits)
            story.steps(out.past_key_values)
            found.append((story.logits, attached))
    same(found[1], found[0])


@pytest.mark.usefixtures("by_twin")
def test_modes_of_autograd_may_change_between_steps(make_model: Callable[..., PreTrainedModel]) -> None:
    model, logits = small(make_model), []
    modes = (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode, torch.no_grad)
    for fast in (False, True):
        with attach(model, quest(CASES[0], fast=fast)) as attached:
            story = Story(model, attached)
            cache = story.prompt(many(2))
            for mode in modes:
                with mode(), attached.decoding():
                    ids = torch.stack([tokens(1), tokens(1, seed=2)])
                    out = model(ids, past_key_values=cache, use_cache=True)
                    logits.append(out.logits.detach().clone())
            if fast:
                assert not out.logits.requires_grad
                assert all(not held.what.high.requires_grad for held in attached._kept._layers.values())
    torch.testing.assert_close(logits[5:], logits[:5], **CLOSE)


class Rounding(DynamicLayer):
    """Keys that change after they were given out, as those of a cache that quantizes them do."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.is_initialized:
            self.keys.round_(decimals=1)
        return super().update(key_states, value_states)


@pytest.mark.usefixtures("by_twin")
def test_a_cache_of_another_kind_is_looked_at_anew_in_each_step(
    make_model: Callable[..., PreTrainedModel],
) -> None:
    model, stories = small(make_model), []
    for fast in (False, True):
        with attach(model, quest(CASES[0], fast=fast)) as attached:
            cache = DynamicCache(config=model.config)
            cache.layers = [Rounding() for _ in range(2)]
            stories.append(Story(model, attached))
            stories[-1].steps(stories[-1].prompt(many(2), cache), 3)
    torch.testing.assert_close(stories[1].logits, stories[0].logits, **CLOSE)
    assert stories[1].rebuilt == [2 * 2 * (61 + step) for step in range(3)]


@pytest.mark.usefixtures("by_twin")
def test_what_was_read_while_the_method_was_off_is_in_the_pages(either: PreTrainedModel) -> None:
    logits = []
    for fast in (False, True):
        with attach(either, quest(CASES[0], fast=fast)) as attached:
            story = Story(either, attached)
            cache = story.steps(story.prompt(many(2)))
        with torch.no_grad():
            either(many(2, 1), past_key_values=cache, use_cache=True)
        with attach(either, quest(CASES[0], fast=fast)) as attached:
            story.attached = attached
            story.steps(cache)
            logits.append(story.logits)
            assert [count > 0 for count in story.rebuilt[2:]] == [fast, False]
        assert not any(module._forward_pre_hooks for module in either.modules())
    torch.testing.assert_close(logits[1], logits[0], **CLOSE)


@pytest.mark.usefixtures("by_twin")
def test_a_step_that_goes_on_does_not_make_the_gpu_wait(
    either: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PageLists, "check", lambda _: None)  # which the twin asks for
    asked = []
    for method in (make_method("moba", 8, chunk=4), quest(CASES[0], fast=True), quest(CASES[5], fast=True)):
        with attach(either, method) as attached:
            read = Rows(either, 3, attached)
            read.feed([tokens(40 + 7 * (row if read.own else 0), seed=row) for row in range(3)])
            read.feed([tokens(1)] * 3, decode=True)
            with Asked() as counted:
                read.feed([tokens(1)] * 3, decode=True)
        asked.append(sum(counted.found.values()))
    assert asked[1:] == [asked[0]] * 2  # dense steps: the model's own


def test_other_memory_is_never_taken_for_what_was_freed() -> None:
    room = bytearray(4000)
    kept = torch.frombuffer(room, dtype=torch.float32)
    known = Allocation(kept)
    assert known == Allocation(kept[:7])
    assert known != Allocation(kept[1:])
    assert not known.gone
    del kept
    assert known.gone
    assert known != Allocation(torch.frombuffer(room, dtype=torch.float32))  # at the same address


@pytest.mark.parametrize("page", [1, 5, 16, 24])
def test_pages_of_any_size_are_fast(page: int) -> None:
    fast = quest({"budget": 300, "page": page}, fast=True)
    assert not fast.simulated
    assert "fast=true" in fast.label
    assert fast.describe()["kernels"]["numerics"] >= 1


def test_without_a_gpu_it_is_refused(make_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(MethodError, match="quest: fast needs a GPU with Triton, bfloat16 or float16"):
        attach(small(make_model), quest(CASES[0], fast=True))
