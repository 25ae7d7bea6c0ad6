"""What a method remembers goes with a row of the cache, and with no other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from nsa_models.methods import Attached, Memories, MethodError, attach, make_method

from .conftest import read_alone, tokens

METHOD = make_method("h2o", 9, recent=4, first=2)


@pytest.fixture
def llama(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_model("llama")


@torch.no_grad()
def prompts(
    model: PreTrainedModel, attached: Attached, many: list[torch.Tensor], memories: Memories | None = None
) -> DynamicCache:
    """A cache that has read rows of one length."""
    cache = DynamicCache(config=model.config)
    with attached.prefilling(memories=memories):
        model(torch.stack(many), past_key_values=cache, use_cache=True)
    return cache


@torch.no_grad()
def step(
    model: PreTrainedModel,
    attached: Attached,
    cache: DynamicCache,
    given: list[torch.Tensor],
    memories: Memories | None = None,
) -> torch.Tensor:
    with attached.decoding(memories=memories):
        return model(torch.stack(given)[:, None], past_key_values=cache, use_cache=True).logits[:, -1]


def test_rows_are_copied_and_joined_with_their_memory(llama: PreTrainedModel) -> None:
    many = [tokens(30, seed=seed) for seed in range(3)]
    with attach(llama, METHOD) as attached:
        alone = [read_alone(llama, attached, row, 3) for row in many]
        memories = attached.fresh(3)
        cache = prompts(llama, attached, [row[:27] for row in many], memories)
        step(llama, attached, cache, [row[27] for row in many], memories)
        # Row 2 twice, then row 0: as a batch of another order that one has left.
        order = [2, 0, 2]
        cache.reorder_cache(torch.tensor(order))
        memories = memories.select(order)
        for t in (28, 29):
            logits = step(llama, attached, cache, [many[row][t] for row in order], memories)
            for place, row in enumerate(order):
                torch.testing.assert_close(logits[place], alone[row][t], rtol=1e-9, atol=1e-9)


def test_copies_of_a_row_go_their_own_ways(llama: PreTrainedModel) -> None:
    first, second = tokens(30, seed=1), tokens(30, seed=1)
    second[24:] = tokens(6, seed=5)
    with attach(llama, METHOD) as attached:
        alone = [read_alone(llama, attached, row, 6) for row in (first, second)]
        memories = attached.fresh(1)
        cache = prompts(llama, attached, [first[:24]], memories)
        cache.reorder_cache(torch.tensor([0, 0]))
        memories = memories.select([0, 0])
        for t in range(24, 30):
            logits = step(llama, attached, cache, [first[t], second[t]], memories)
            for place in (0, 1):
                torch.testing.assert_close(logits[place], alone[place][t], rtol=1e-9, atol=1e-9)


def test_joined_memories_stand_in_order() -> None:
    parts = [Memories.fresh(2), Memories.fresh(1)]
    assert Memories.join(parts).rows == [*parts[0].rows, *parts[1].rows]


def test_methods_without_memory_have_none(llama: PreTrainedModel) -> None:
    with attach(llama, make_method("exact-top", 9, first=1, local=2)) as attached:
        assert attached.fresh(3) is None


def test_a_reordered_cache_is_an_error(llama: PreTrainedModel) -> None:
    many = [tokens(20, seed=seed) for seed in range(2)]
    with attach(llama, METHOD) as attached:
        cache = prompts(llama, attached, many)
        cache.reorder_cache(torch.tensor([1, 0]))
        with pytest.raises(MethodError, match=r"h2o: a row goes on with its token 20, .* is of another row"):
            step(llama, attached, cache, [tokens(1)[0]] * 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_keys_that_round_otherwise_are_the_same_row_s(llama: PreTrainedModel, dtype: torch.dtype) -> None:
    """Models that cache latents (MLA) make keys anew in each forward, whose last place is its shape's."""
    row, model = tokens(20), llama.to(dtype)
    for off, same in ((1.0, True), (1000.0, False)):
        with attach(model, METHOD) as attached:
            cache = prompts(model, attached, [row])
            for layer in cache.layers:
                layer.keys = layer.keys * (1 + off * torch.finfo(dtype).eps)
            with contextlib.nullcontext() if same else pytest.raises(MethodError, match="is of another row"):
                step(model, attached, cache, [row[0]])


def test_beam_search_is_an_error_and_not_another_result(llama: PreTrainedModel) -> None:
    with (
        attach(llama, METHOD, auto_phase="generate"),
        pytest.raises(MethodError, match="is of another row: a cache was reordered"),
    ):
        llama.generate(tokens(20)[None], max_new_tokens=12, num_beams=4, do_sample=False)


def test_a_cache_that_was_read_without_the_method_is_an_error(llama: PreTrainedModel) -> None:
    row = tokens(20)
    cache = DynamicCache(config=llama.config)
    llama(row[None], past_key_values=cache, use_cache=True)
    with attach(llama, METHOD) as attached:
        with pytest.raises(
            MethodError, match="token 20, and what the method remembers of it ends before token 0"
        ):
            step(llama, attached, cache, [row[0]])
        read_alone(llama, attached, tokens(25), 2)  # what the handle remembers is of another row, by length
        with pytest.raises(MethodError, match="ends before token 25"):
            step(llama, attached, cache, [row[0]])


def test_a_cropped_cache_is_an_error(llama: PreTrainedModel) -> None:
    row = tokens(20)
    with attach(llama, METHOD) as attached:
        cache = prompts(llama, attached, [row])
        cache.crop(-5)
        with pytest.raises(MethodError, match=r"token 15, and what .* ends before token 20"):
            step(llama, attached, cache, [row[15]])


def test_a_prompt_that_goes_on_behind_decode_steps_is_an_error(llama: PreTrainedModel) -> None:
    row = tokens(20)
    with attach(llama, METHOD) as attached:
        cache = prompts(llama, attached, [row])
        step(llama, attached, cache, [row[0]])
        with pytest.raises(
            MethodError, match="a prompt goes on at token 21, behind decode steps from token 20"
        ):
            llama(row[None, :4], past_key_values=cache, use_cache=True)


def test_memories_of_another_number_of_rows_are_an_error(llama: PreTrainedModel) -> None:
    with (
        attach(llama, METHOD) as attached,
        pytest.raises(MethodError, match="2 rows came with the memory of 3"),
    ):
        prompts(llama, attached, [tokens(9), tokens(9)], attached.fresh(3))


def test_a_row_that_begins_again_begins_anew(llama: PreTrainedModel) -> None:
    one, two = tokens(30, seed=1), tokens(30, seed=2)
    with attach(llama, METHOD) as attached:
        expected = read_alone(llama, attached, two, 4)
    with attach(llama, METHOD) as attached:
        read_alone(llama, attached, one, 4)
        assert torch.equal(read_alone(llama, attached, two, 4), expected)


def test_nothing_is_taken_note_of_where_nothing_goes_on(llama: PreTrainedModel) -> None:
    row = tokens(20)
    with attach(llama, METHOD) as attached:
        memories = attached.fresh(1)
        with attached.prefilling(memories=memories, continued=False):
            llama(row[None], use_cache=False)
        assert memories.rows[0].layers == {}
