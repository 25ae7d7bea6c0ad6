"""Frequencies that depend on a forward's length: where the borders are, and what is put back."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM
from nsa_models.families import family_of
from nsa_models.families._frequencies import Frequencies

_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 6.0, 9.0, 14.0],
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}


def tiny(kind: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**_SHAPE, **fields})).eval()


def test_regimes_of_a_border() -> None:
    found = Frequencies(borders=(32,))
    assert found.regime(1) == found.regime(32)
    assert found.regime(32) != found.regime(33)
    assert found.regime(33) == found.regime(5000)
    assert [found.first_forward(length) for length in (1, 32, 33, 5000)] == [1, 1, 33, 33]


def test_regimes_that_move() -> None:
    found = Frequencies(moving=32)
    assert found.regime(3) == found.regime(32)
    assert len({found.regime(length) for length in range(30, 40)}) == 8  # 30 to 32, and seven more
    assert [found.first_forward(length) for length in (32, 33, 100)] == [1, 33, 100]


@pytest.mark.parametrize(
    ("fields", "borders", "moving"),
    [
        ({}, (), None),
        ({"rope_parameters": _LONG}, (32,), None),
        ({"rope_parameters": _DYNAMIC}, (), 128),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            (),
            None,
        ),
    ],
)
def test_borders_are_read_from_the_config(
    fields: dict[str, Any], borders: tuple[int, ...], moving: int | None
) -> None:
    found = family_of(tiny("llama", **fields)).frequencies
    assert (found.borders, found.moving) == (borders, moving)


def test_borders_of_each_layer_type_count() -> None:
    plain = {"rope_type": "default", "rope_theta": 1e4}
    model = tiny(
        "gemma3_text",
        head_dim=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"sliding_attention": plain, "full_attention": _DYNAMIC},
    )
    assert Frequencies.of(model).moving == 128


def test_a_long_forward_leaves_nothing_for_the_next() -> None:
    """After 90 tokens transformers keeps dynamic frequencies of 90 for a forward of 70."""
    model = tiny("llama", rope_parameters=_DYNAMIC, max_position_embeddings=32)
    tokens = torch.arange(2, 92)[None] % 90
    with torch.inference_mode():
        alone = model(input_ids=tokens[:, :70], use_cache=False).logits
        frequencies = Frequencies.of(model)
        model(input_ids=tokens, use_cache=False)
        stale = model(input_ids=tokens[:, :70], use_cache=False).logits
        assert (stale - alone).abs().max() > 1e-2
        frequencies.reset()
        torch.testing.assert_close(model(input_ids=tokens[:, :70], use_cache=False).logits, alone)


@pytest.mark.parametrize("nsa_compress_rotated", [False, True])
def test_compressed_keys_have_their_forwards_frequencies(nsa_compress_rotated: bool) -> None:
    """Blocks begin before the border where the forward ends behind it; pieces and whole agree."""
    torch.manual_seed(0)
    model = NSADecoderForCausalLM(
        NSADecoderConfig(
            **_SHAPE,
            head_dim=8,
            attention="nsa",
            nsa_block=8,
            nsa_stride=4,
            nsa_select_block=8,
            nsa_select_count=3,
            nsa_window=8,
            nsa_compress_rotated=nsa_compress_rotated,
            rope_parameters=_LONG,
        )
    ).eval()
    tokens = torch.randint(2, 96, (1, 50), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = model(input_ids=tokens, use_cache=False).logits
        first = model(input_ids=tokens[:, :33], use_cache=True)
        rest = model(input_ids=tokens[:, 33:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, rtol=1e-4, atol=1e-4)
    short = model.model.rotary_emb.original_inv_freq
    assert not torch.allclose(model.model.rotary_emb.inv_freq, short)
