"""Decode steps of fixed shapes tell the same story as the decoder's own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nsa_models import DecodeGraph, NSACache, NSADecoderForCausalLM, StaticDecoder
from nsa_models.static import PAGE, capacity, why_not_captured

Make = Callable[..., NSADecoderForCausalLM]

VARIANTS: dict[str, dict[str, Any]] = {
    "full, one head to a group": {"attention": "full", "num_key_value_heads": 4},
    "rotated before a linear phi": {"nsa_compression": "linear", "nsa_compress_rotated": True},
    "rotated before an MLP": {"nsa_compress_rotated": True},
    "mean, rotated after": {"nsa_compression": "mean"},
    "shared K/V, linear": {"nsa_share_kv": True, "nsa_compression": "linear"},
}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(
        a, b, rtol=1e-5, atol=1e-6
    )  # importance is ranked in float32, all else in float64


def filled(model: NSADecoderForCausalLM, tokens: Tensor, lengths: list[int]) -> NSACache:
    """A cache of rows of these lengths."""
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    cache: NSACache = model(tokens[:, :width], attention_mask=mask, use_cache=True).past_key_values
    return cache


def check(model: NSADecoderForCausalLM, tokens: Tensor, lengths: list[int], steps: int) -> None:
    """Step by step, and an ordinary forward from where the steps end."""
    with torch.no_grad():
        plain, cache = filled(model, tokens, lengths), filled(model, tokens, lengths)
        decoder = StaticDecoder(model, cache, max_new_tokens=steps)
        for step in range(steps):
            nexts = torch.stack([tokens[row, length + step] for row, length in enumerate(lengths)])
            expected = model(nexts[:, None], past_key_values=plain).logits[:, 0]
            close(decoder.step(nexts.tolist()), expected)
            assert cache.lengths == plain.lengths
        more = tokens[:, :5]
        close(
            model(more, past_key_values=cache).logits,
            model(more, past_key_values=plain).logits,
        )
    assert cache.lengths == [length + steps + 5 for length in lengths]


@pytest.mark.parametrize("lengths", [[40, 40], [53, 32], [1, 30]], ids=["equal", "ragged", "from one token"])
def test_steps_equal_the_ordinary_forward(
    any_model: NSADecoderForCausalLM, tokens: Tensor, lengths: list[int]
) -> None:
    """From one token on, a row's first blocks complete while it decodes."""
    check(any_model, tokens, lengths, steps=30)


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_equal_the_ordinary_forward_for_each_phi(
    tiny_model: Make, tokens: Tensor, variant: str
) -> None:
    check(tiny_model(**VARIANTS[variant]), tokens, [47, 6], steps=25)


def test_the_reserved_room_is_made_once(any_model: NSADecoderForCausalLM, tokens: Tensor) -> None:
    with torch.no_grad():
        cache = filled(any_model, tokens, [53, 32])
        decoder = StaticDecoder(any_model, cache, max_new_tokens=3)
        places = [buffer.data_ptr() for layer in cache.layers for buffer in layer.buffers.values()]
        for _ in range(3):
            decoder.step([5, 6])
    after = [buffer.data_ptr() for layer in cache.layers for buffer in layer.buffers.values()]
    assert after == places
    assert decoder.capacity == PAGE
    assert {
        buffer.shape[1]
        for layer in cache.layers
        for name, buffer in layer.buffers.items()
        if name not in ("k_cmp", "v_cmp")
    } == {PAGE}


def test_what_stands_behind_a_row_is_never_read(any_model: NSADecoderForCausalLM, tokens: Tensor) -> None:
    """The room behind a row may hold anything finite: other rows' padding, an abandoned step."""
    lengths = [53, 20]
    with torch.no_grad():
        expected = StaticDecoder(any_model, filled(any_model, tokens, lengths), max_new_tokens=1)
        cache = filled(any_model, tokens, lengths)
        decoder = StaticDecoder(any_model, cache, max_new_tokens=1)
        for layer in cache.layers:
            for name, buffer in layer.buffers.items():
                for row, length in enumerate(lengths):
                    kept = (length - 8) // 4 + 1 if name in ("k_cmp", "v_cmp") else length
                    buffer[row, kept:] = 1e3
        close(decoder.step([9, 9]), expected.step([9, 9]))


def test_greedy_replies_are_the_same(any_model: NSADecoderForCausalLM, tokens: Tensor) -> None:
    lengths = [53, 32]
    mask = (torch.arange(53) < torch.tensor(lengths)[:, None]).long()
    replies: list[list[list[int]]] = []
    with torch.no_grad():
        for steady in (False, True):
            out = any_model(tokens[:, :53], attention_mask=mask, use_cache=True)
            picked = out.logits[torch.arange(2), torch.tensor(lengths) - 1].argmax(-1)
            decoder = DecodeGraph(any_model, out.past_key_values, max_new_tokens=40)
            made = [picked.tolist()]
            for _ in range(40):
                logits = (
                    decoder.step(picked)
                    if steady
                    else any_model(picked[:, None], past_key_values=out.past_key_values).logits[:, 0]
                )
                picked = logits.argmax(-1)
                made.append(picked.tolist())
            replies.append(made)
    assert replies[0] == replies[1]
    assert len({row[0] for row in replies[0]}) > 3


def test_misuse_is_told(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="the cache is empty"):
        StaticDecoder(model, NSACache(2), max_new_tokens=1)
    with torch.no_grad():
        cache = filled(model, tokens, [53, 32])
        with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
            StaticDecoder(model, cache, max_new_tokens=0)
        decoder = StaticDecoder(model, cache, max_new_tokens=1)
        with pytest.raises(ValueError, match=r"one token a row, 2 in all, got \[3\]"):
            decoder.step([1, 2, 3])
        for _ in range(PAGE - 53):
            decoder.step([5, 5])
        with pytest.raises(ValueError, match="256 columns of the buffers are full"):
            decoder.step([5, 5])
        decoder = StaticDecoder(model, cache, max_new_tokens=1)
        cache.crop(-1)
        with pytest.raises(ValueError, match="the cache was changed"):
            decoder.step([5, 5])


def test_capacity_is_whole_pages(tiny_model: Make) -> None:
    config = tiny_model().config
    assert [capacity(config, tokens) for tokens in (1, PAGE, PAGE + 1)] == [PAGE, PAGE, 2 * PAGE]
    config.nsa_block = 3 * PAGE
    assert capacity(config, 5) == 3 * PAGE


def test_a_cpu_says_why_it_captures_nothing(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()
    assert "need a GPU" in (why_not_captured(model) or "")
    with torch.no_grad():
        decoder = DecodeGraph(model, filled(model, tokens, [10, 12]), max_new_tokens=1)
        decoder.step([4, 5])
    assert not decoder.captured
