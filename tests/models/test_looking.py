"""Recorded blocks are those of the definition, whatever backend, chunk or padding; a known choice is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nsa_kernels import BlockGeometry
from nsa_models import NSADecoderConfig, NSADecoderForCausalLM
from nsa_models.looking import (
    blocks_of,
    chosen_blocks,
    forced_blocks,
    hold,
    recorded_blocks,
)

Make = Callable[..., NSADecoderForCausalLM]
FILLER, NEEDLE, DECOY, QUESTION = range(3, 7)
# What a decoder of 2 layers and 2 KV groups is made to look for at QUESTION: only group 1 of layer 0 wants
# the needle, the others the decoy.
WANTED = [[DECOY, NEEDLE], [DECOY, DECOY]]


@pytest.fixture
def seeker() -> NSADecoderForCausalLM:
    """A decoder whose choice is known: embeddings are one-hot, layers pass them on, scores match tokens.

    One block beside the forced ones is chosen, of 8 tokens each, by keys of which one pair of dimensions
    rotates and the others say which token it is.
    """
    config = NSADecoderConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        qk_norm=False,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.125},
        nsa_block=8,
        nsa_stride=4,
        nsa_select_block=8,
        nsa_select_count=4,
        nsa_window=8,
        nsa_compression="mean",
    )
    model = NSADecoderForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(8))
        for layer, wanted in zip(model.model.layers, WANTED, strict=True):
            layer.input_layernorm.weight.fill_(1.0)
            keys = layer.self_attn.k_proj.weight.view(3, 2, 16, 8)  # branch, group, dimension, token
            for token in range(8):
                keys[:, :, 8 + token, token] = 1.0
            queries = layer.self_attn.q_proj.weight.view(2, 16, 8)
            for group, token in enumerate(wanted):
                queries[group, 8 + token, QUESTION] = 40.0
    return model


def text(needle: int, decoy: int, size: int = 96) -> list[int]:
    row = [FILLER] * size
    row[needle], row[decoy], row[-1] = NEEDLE, DECOY, QUESTION
    return row


@pytest.mark.parametrize(("needle", "decoy"), [(20, 50), (50, 20), (75, 33)])
def test_a_known_choice_is_seen_in_the_layer_and_group_that_makes_it(
    seeker: NSADecoderForCausalLM, needle: int, decoy: int
) -> None:
    blocks, _ = chosen_blocks(seeker, text(needle, decoy), last=1)
    assert blocks.shape == (2, 1, 2, 4)
    for layer in range(2):
        for group in range(2):
            sought = needle if WANTED[layer][group] == NEEDLE else decoy
            # Block 0, its own (88..95) and the one before are forced.
            assert blocks[layer, 0, group].tolist() == sorted([0, sought // 8, 10, 11])
    held = hold(blocks[:, -1], [needle // 8])
    assert held.tolist() == [[False, True], [False, False]]


def reference(model: NSADecoderForCausalLM) -> NSADecoderForCausalLM:
    """The same weights on the definition."""
    config = NSADecoderConfig(**{**model.config.to_dict(), "nsa_backend": "reference"})
    twin = NSADecoderForCausalLM(config).to(model.dtype).eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("select", [4, 3])
@pytest.mark.parametrize("chunk", [7, 64, 8192])
@pytest.mark.parametrize("compression", ["mlp", "mean"])
def test_chunks_choose_what_the_definition_chooses(
    tiny_model: Make, tokens: Tensor, compression: str, chunk: int, select: int
) -> None:
    model = tiny_model(nsa_compression=compression, nsa_select_count=select)
    ids = tokens[0].tolist()
    twin = reference(model)
    with torch.no_grad(), recorded_blocks(twin) as record:
        twin(tokens[:1])
    for last in (1, 11, 90):
        found, _ = chosen_blocks(model, ids, last=last, chunk=chunk)
        assert torch.equal(found, record.blocks[:, 0, -last:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_choose_as_they_do_alone(tiny_model: Make, tokens: Tensor, side: str) -> None:
    model = tiny_model()
    short = 61
    row, mask = tokens.clone(), torch.ones_like(tokens)
    padding = slice(0, 90 - short) if side == "left" else slice(short, 90)
    mask[1, padding] = 0
    real = tokens[1][mask[1].bool()]
    with torch.no_grad(), recorded_blocks(model) as record:
        model(row, attention_mask=mask)
    assert torch.equal(record.blocks[:, 0], chosen_blocks(model, tokens[0].tolist(), last=90)[0])
    assert torch.equal(record.blocks[:, 1, :short], chosen_blocks(model, real.tolist(), last=90)[0])
    assert (record.blocks[:, 1, short:] == -1).all()


@pytest.mark.parametrize("chunk", [2, 8192])
def test_continuations_choose_as_if_each_alone_followed(tiny_model: Make, tokens: Tensor, chunk: int) -> None:
    model = tiny_model()
    prompt, rest = tokens[0, :70].tolist(), tokens[0, 70:].tolist()
    continuations = [rest, rest[::-1][:5], [], rest[:1]]
    found, following = chosen_blocks(model, prompt, continuations, last=4, chunk=chunk)
    assert torch.equal(found, chosen_blocks(model, prompt, last=4)[0])
    assert [blocks.shape[1] for blocks in following] == [20, 5, 0, 1]
    for ids, blocks in zip(continuations, following, strict=True):
        if ids:
            assert torch.equal(blocks, chosen_blocks(model, [*prompt, *ids], last=len(ids))[0])


def test_decoding_is_recorded_too(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()
    whole, _ = chosen_blocks(model, tokens[0].tolist(), last=3)
    with torch.no_grad():
        cache = model(tokens[:1, :87], use_cache=True).past_key_values
        with recorded_blocks(model) as record:
            for column in range(87, 90):
                model(tokens[:1, column : column + 1], past_key_values=cache)
    assert torch.equal(record.blocks[:, 0], whole)


def test_recording_changes_no_logit_and_ends_with_its_context(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()
    with torch.no_grad():
        before = model(tokens).logits
        with recorded_blocks(model):
            assert torch.equal(model(tokens).logits, before)
            with pytest.raises(ValueError, match="recorded already"), recorded_blocks(model):
                pass
        assert all(layer.self_attn.on_blocks is None for layer in model.model.layers)


def test_a_prompt_within_reach_chooses_every_block(tiny_model: Make) -> None:
    blocks, _ = chosen_blocks(tiny_model(), [5] * 30, last=2)
    assert blocks.tolist() == [[[[0, 1, 2, 3]] * 2] * 2] * 2
    assert chosen_blocks(tiny_model(), [5] * 3, last=9)[0].shape == (2, 3, 2, 4)


def test_what_chooses_no_blocks_says_so(tiny_model: Make) -> None:
    dense = tiny_model(attention="full")
    with pytest.raises(ValueError, match="needs layers of Native Sparse Attention"):
        chosen_blocks(dense, [3, 4], last=1)
    with (
        pytest.raises(ValueError, match="no blocks were recorded"),
        recorded_blocks(tiny_model()) as record,
    ):
        _ = record.blocks


@pytest.mark.parametrize("arguments", [{"tokens": []}, {"last": 0}, {"chunk": 0}])
def test_nothing_to_look_at_is_refused(tiny_model: Make, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give tokens, last and chunk"):
        chosen_blocks(tiny_model(), **{"tokens": [3, 4], "last": 1, **arguments})


def test_spans_forced_blocks_and_holding() -> None:
    geometry = BlockGeometry(block=8, stride=4, select_block=8, select_count=4, window=8)
    assert blocks_of(range(6, 17), geometry) == (0, 1, 2)
    assert blocks_of(range(8, 16), geometry) == (1,)
    assert blocks_of(range(5, 5), geometry) == ()
    assert [forced_blocks(t, geometry) for t in (0, 7, 8, 23, 80)] == [
        (0,), (0,), (0, 1), (0, 1, 2), (0, 9, 10),
    ]  # fmt: skip
    own = BlockGeometry(
        block=8, stride=4, select_block=8, select_count=4, window=8, first_blocks=0, last_blocks=1
    )
    assert forced_blocks(80, own) == (10,)
    blocks = torch.tensor([[0, 3, 9, 10], [0, 4, 9, 10], [0, 1, -1, -1]])
    assert hold(blocks, [3, 4]).tolist() == [False, False, False]
    assert hold(blocks, [0, 4]).tolist() == [False, True, False]
    assert hold(blocks, []).tolist() == [True, True, True]
