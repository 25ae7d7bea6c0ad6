"""The decoder: prefill, chunks, single tokens, padding and generate() all tell the same story."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from nsa_models import NSACache, NSADecoderConfig, NSADecoderForCausalLM

Make = Callable[..., NSADecoderForCausalLM]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(
        a, b, rtol=1e-5, atol=1e-6
    )  # importance is ranked in float32, all else in float64


@pytest.mark.parametrize("chunks", [(90,), (30, 60), (7, 1, 50, 32), (1, 89), (85, 1, 1, 1, 1, 1)])
def test_chunked_prefill_and_decode_equal_one_prefill(
    any_model: NSADecoderForCausalLM, tokens: Tensor, chunks: tuple[int, ...]
) -> None:
    with torch.no_grad():
        whole = any_model(tokens, use_cache=False).logits
        cache, pieces = None, []
        for chunk in tokens.split(list(chunks), dim=1):
            out = any_model(chunk, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            pieces.append(out.logits)
    close(torch.cat(pieces, dim=1), whole)
    assert cache is not None
    assert cache.lengths == [90, 90]


def test_token_by_token_decode_equals_prefill(any_model: NSADecoderForCausalLM, tokens: Tensor) -> None:
    with torch.no_grad():
        whole = any_model(tokens[:, :40], use_cache=False).logits
        cache = NSACache(any_model.config.num_hidden_layers)
        steps = [any_model(tokens[:, i : i + 1], past_key_values=cache).logits for i in range(40)]
    close(torch.cat(steps, dim=1), whole)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_logits(any_model: NSADecoderForCausalLM, tokens: Tensor, side: str) -> None:
    lengths = (90, 61)
    padded = torch.full((2, 90), 2)
    mask = torch.zeros(2, 90, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(90 - length, 90)
        padded[row, place], mask[row, place] = tokens[row, :length], 1
    with torch.no_grad():
        together = any_model(padded, attention_mask=mask).logits
        for row, length in enumerate(lengths):
            alone = any_model(tokens[row : row + 1, :length]).logits[0]
            place = slice(0, length) if side == "right" else slice(90 - length, 90)
            close(together[row, place], alone)


def test_rows_of_different_length_decode_as_if_alone(
    any_model: NSADecoderForCausalLM, tokens: Tensor
) -> None:
    lengths, further = (53, 32), 20
    mask = (torch.arange(53) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        cache = any_model(tokens[:, :53], attention_mask=mask, use_cache=True).past_key_values
        got = []
        for step in range(further):
            nexts = torch.stack([tokens[row, length + step] for row, length in enumerate(lengths)])[:, None]
            got.append(any_model(nexts, past_key_values=cache).logits)
        for row, length in enumerate(lengths):
            alone = any_model(tokens[row : row + 1, : length + further]).logits[0, length:]
            close(torch.cat(got, dim=1)[row], alone)
    assert cache.lengths == [73, 52]


def test_a_chunk_can_follow_rows_of_different_length(
    any_model: NSADecoderForCausalLM, tokens: Tensor
) -> None:
    mask = (torch.arange(40) < torch.tensor([40, 21])[:, None]).long()
    follow = (torch.arange(30) < torch.tensor([13, 30])[:, None]).long()
    rows = [torch.cat([tokens[0, :40], tokens[0, 40:53]]), torch.cat([tokens[1, :21], tokens[1, 40:70]])]
    with torch.no_grad():
        cache = any_model(tokens[:, :40], attention_mask=mask, use_cache=True).past_key_values
        got = any_model(tokens[:, 40:70], attention_mask=follow, past_key_values=cache).logits
        for row, (first, count) in enumerate([(40, 13), (21, 30)]):
            close(got[row, :count], any_model(rows[row][None]).logits[0, first:])


def test_generate_is_greedy_argmax_and_ignores_left_padding(
    any_model: NSADecoderForCausalLM, tokens: Tensor
) -> None:
    prompt = tokens[:1, :37]
    sequence = prompt
    with torch.no_grad():
        for _ in range(8):
            sequence = torch.cat(
                [sequence, any_model(sequence).logits[:, -1].argmax(-1, keepdim=True)], dim=1
            )
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 10_000, "pad_token_id": 2}
    assert any_model.generate(prompt, **options).tolist() == sequence.tolist()
    padded = torch.cat([torch.full((1, 5), 2), prompt], dim=1)
    mask = (torch.arange(42) >= 5).long()[None]
    both = torch.cat([padded, tokens[1:, :42]])
    masks = torch.cat([mask, torch.ones_like(mask)])
    got = any_model.generate(both, attention_mask=masks, **options)
    assert got[0, 42:].tolist() == sequence[0, 37:].tolist()


def test_beam_search_runs_on_the_cache(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "num_beams": 3,
        "eos_token_id": 10_000,
        "pad_token_id": 2,
    }
    with_cache = model.generate(tokens[:, :30], use_cache=True, **options)
    without = model.generate(tokens[:, :30], use_cache=False, **options)
    assert with_cache.tolist() == without.tolist()


@pytest.mark.parametrize("keep", [1, 5, torch.tensor([0, 17, 88])])
def test_logits_to_keep_picks_columns(tiny_model: Make, tokens: Tensor, keep: int | Tensor) -> None:
    model = tiny_model()
    whole = model(tokens).logits
    columns = torch.arange(90)[-keep:] if isinstance(keep, int) else keep
    kept = model(tokens, logits_to_keep=keep).logits
    assert kept.shape[1] == len(columns)
    close(kept, whole[:, columns])


def test_gradient_checkpointing_gives_the_same_gradients(
    any_model: NSADecoderForCausalLM, tokens: Tensor
) -> None:
    def gradients() -> dict[str, Tensor]:
        any_model.zero_grad()
        any_model(tokens, labels=tokens).loss.backward()
        return {name: p.grad.clone() for name, p in any_model.named_parameters() if p.grad is not None}

    any_model.train()
    plain = gradients()
    any_model.gradient_checkpointing_enable()
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    assert len(plain) == len(list(any_model.named_parameters()))  # every weight learns
    for name, gradient in plain.items():
        close(checkpointed[name], gradient)


def test_save_and_load_round_trip(any_model: NSADecoderForCausalLM, tokens: Tensor, tmp_path: Path) -> None:
    any_model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), NSADecoderConfig)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert isinstance(again, NSADecoderForCausalLM)
    before, after = any_model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    close(again(tokens).logits, any_model(tokens).logits)


def test_yarn_changes_the_rotation(tiny_model: Make, tokens: Tensor) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    scaled, plain = tiny_model(attention="full", rope_parameters=yarn), tiny_model(attention="full")
    assert scaled.model.rotary_emb.attention_scaling > 1.0
    assert not torch.allclose(scaled(tokens).logits, plain(tokens).logits)


def test_hidden_states_come_in_the_order_given(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()
    out = model.model(tokens, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "sparse"}, "attention must be one of nsa, full.*, got 'sparse'"),
        ({"num_attention_heads": 3}, "must be a multiple of"),
        ({"nsa_compression": "max"}, "nsa_compression must be one of"),
        ({"nsa_stride": 3}, "3"),
    ],
)
def test_an_impossible_shape_is_refused(tiny_model: Make, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(**change)


def test_a_mask_with_a_hole_is_refused(tiny_model: Make, tokens: Tensor) -> None:
    mask = torch.ones(2, 90, dtype=torch.long)
    mask[0, 40] = 0
    with pytest.raises(ValueError, match="between a row's tokens"):
        tiny_model()(tokens, attention_mask=mask)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_compiled_layers_train_alike(tiny_model: Make, tokens: Tensor, backend: str) -> None:
    """torch.compile goes round the attention's kernels, and gradients come through all the same."""
    results = []
    for compiled in (False, True):
        model = tiny_model(nsa_backend=backend, num_hidden_layers=1).train()
        if compiled:
            for layer in model.model.layers:
                layer.compile(dynamic=False, backend="aot_eager")
        loss = model(tokens[:, :50], labels=tokens[:, :50]).loss
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    close(results[1][0], results[0][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name.replace("_orig_mod.", "")], gradient)
