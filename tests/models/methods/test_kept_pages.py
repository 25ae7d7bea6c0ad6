"""Page extremes kept beside a cache are those of its keys, whatever becomes of the cache."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from nsa_kernels.blocks import PageLists
from nsa_models.methods import Attached, _paged, attach, make_method
from nsa_models.methods._beside import Allocation

from .alike import CLOSE, same
from .conftest import Rows, tokens
from .test_paged import CASES, decoded, quest, small
from .test_waits import Asked


@pytest.fixture(params=["llama", "decoder"])
def either(request: pytest.FixtureRequest, make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """A cache that is a new tensor in each step, and one that is written in place."""
    return small(make_model, request.param)


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


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[5]], ids=str)
@pytest.mark.usefixtures("by_twin")
def test_rows_without_a_token_in_a_step_read_nothing(either: PreTrainedModel, case: dict[str, Any]) -> None:
    found = []
    for fast in (False, True):
        with attach(either, quest(case, fast=fast)) as attached:
            rows = Rows(either, 3, attached)
            parts = rows.feed([tokens(60 + row, seed=row) for row in range(3)])
            for pattern in ((1, 1, 1), (1, 0, 1), (1, 1, 1), (1, 1, 1), (0, 0, 1)):
                parts += rows.feed([tokens(count) for count in pattern], decode=True)
        found.append((parts, attached))
    same(found[1], found[0])
    assert found[1][1].reads.decode.queries == 2 * 4 * 12
    ends = [*(61 + row for row in range(3)), 62, 64, 63, 62, 65, 64, 63, 66, 67]
    assert found[1][1].reads.index.scored == 2 * sum(quest(case, fast=True).index_reads(end) for end in ends)


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


@pytest.mark.parametrize("next_prompt", [True, False])
@pytest.mark.usefixtures("by_twin")
def test_nothing_of_a_cache_outlives_it(either: PreTrainedModel, next_prompt: bool) -> None:
    """Extremes are let go with the method, or by the next prompt."""
    with attach(either, quest(CASES[0], fast=True)) as attached:
        story = Story(either, attached)
        cache = story.steps(story.prompt(many(2)))
        keys = [weakref.ref(layer) for layer in cache.layers]
        known = [weakref.ref(held.what.high) for held in attached._kept._layers.values()]
        del cache
        assert [ref() for ref in keys] == [None, None]
        assert len(known) == 2
        if next_prompt:
            story.prompt(many(1))
            assert [ref() for ref in known] == [None, None]
    assert [ref() for ref in known] == [None, None]


@pytest.mark.usefixtures("by_twin")
def test_a_cache_that_grew_too_large_is_not_kept_by_the_step_that_failed(
    make_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(make_model)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with attach(model, quest(CASES[0], fast=True)) as attached:
        story = Story(model, attached)
        cache = story.steps(story.prompt(many(2)))
        monkeypatch.setattr(DynamicLayer, "update", full)
        with pytest.raises(torch.OutOfMemoryError):
            story.steps(cache)
        layers = [weakref.ref(layer) for layer in cache.layers]
        del cache
        assert [layer() for layer in layers] == [None, None]


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
