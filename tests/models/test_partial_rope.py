"""partial_rotary_factor: what turns, what stays, and that leaving it away changes nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GlmConfig
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM
from nsa_models.rope import RotaryEmbedding, rotate

Make = Callable[..., NSADecoderForCausalLM]
WIDTH = 16


def rope(share: float | None, **more: Any) -> dict[str, Any]:
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0, **more}
    return parameters if share is None else {**parameters, "partial_rotary_factor": share}


def embedding(share: float | None, **more: Any) -> RotaryEmbedding:
    return RotaryEmbedding(NSADecoderConfig(head_dim=WIDTH, rope_parameters=rope(share, **more)))


def by_hand(x: Tensor, positions: Tensor, rotated: int) -> Tensor:
    """Pair (i, i + r/2) of a head turns by position * theta^(-2i/r), one pair at a time; the rest stays."""
    out = x.clone()
    for i in range(rotated // 2):
        angle = positions * 10_000.0 ** (-2 * i / rotated)
        cos, sin = angle.cos()[..., None], angle.sin()[..., None]
        a, b = x[..., i], x[..., i + rotated // 2]
        out[..., i], out[..., i + rotated // 2] = a * cos - b * sin, b * cos + a * sin
    return out


@pytest.mark.parametrize("factor", [None, 1.0, 0.75, 0.5, 0.25, 0.125])
def test_the_first_dimensions_turn_and_the_others_stay(factor: float | None) -> None:
    x = torch.randn(2, 7, 3, WIDTH, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [9, 30, 31, 32, 33, 90, 91]])
    cos, sin = embedding(factor)(x, positions)
    rotated = int(WIDTH * (1.0 if factor is None else factor))
    assert cos.shape == (2, 7, 1, rotated)
    got = rotate(x, cos, sin)
    torch.testing.assert_close(got, by_hand(x, positions.double(), rotated), rtol=1e-5, atol=1e-5)
    assert torch.equal(got[..., rotated:], x[..., rotated:])
    assert not torch.allclose(got[:, 1:, :, : rotated // 2], x[:, 1:, :, : rotated // 2], atol=1e-3)


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.25])
def test_frequencies_are_those_of_transformers_partial_rope(factor: float) -> None:
    theirs = GlmRotaryEmbedding(
        GlmConfig(hidden_size=64, num_attention_heads=4, head_dim=WIDTH, rope_parameters=rope(factor))
    )
    torch.testing.assert_close(embedding(factor).inv_freq, theirs.inv_freq)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "dynamic", "factor": 2.0},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_scaled_frequencies_cover_the_rotated_part_alone(scaling: dict[str, Any]) -> None:
    made = embedding(0.5, **scaling)
    assert made.inv_freq.shape == (WIDTH // 4,)
    x = torch.randn(1, 5, 2, WIDTH)
    got = rotate(x, *made(x, torch.arange(5)[None]))
    assert torch.equal(got[..., WIDTH // 2 :], x[..., WIDTH // 2 :])


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_a_factor_of_one_is_the_model_without_it_to_the_bit(
    tiny_model: Make, tokens: Tensor, attention: str
) -> None:
    plain = tiny_model(torch.float32, attention=attention)
    one = tiny_model(torch.float32, attention=attention, rope_parameters=rope(1.0))
    half = tiny_model(torch.float32, attention=attention, rope_parameters=rope(0.5))
    assert torch.equal(one(tokens).logits, plain(tokens).logits)
    assert not torch.allclose(half(tokens).logits, plain(tokens).logits, atol=1e-3)


def test_compressed_keys_turn_by_their_blocks_first_position(tiny_model: Make) -> None:
    attention = tiny_model(rope_parameters=rope(0.5)).model.layers[0].self_attn
    width, stride = attention.config.head_dim, attention.config.nsa_stride
    keys = torch.randn(1, 40, 2, width, dtype=torch.float64)
    unrotated = attention.k_compress(keys)
    first = (torch.arange(unrotated.shape[1]) * stride).double()[None]
    expected = by_hand(unrotated, first, width // 2)
    torch.testing.assert_close(attention._compress_keys(keys, None), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_the_factor_travels_with_the_checkpoint(
    tiny_model: Make, tokens: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture, attention: str
) -> None:
    model = tiny_model(torch.float32, attention=attention, rope_parameters=rope(0.5))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert saved["rope_parameters"]["partial_rotary_factor"] == 0.5
    with caplog.at_level(logging.WARNING):
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)
    assert "partial_rotary_factor" not in caplog.text  # transformers warns of keys it doesn't expect


def test_a_field_beside_rope_parameters_is_moved_into_them(tmp_path: Path) -> None:
    given = NSADecoderConfig(head_dim=WIDTH, partial_rotary_factor=0.5)
    given.save_pretrained(tmp_path)
    for config in (given, AutoConfig.from_pretrained(tmp_path)):
        assert config.rope_parameters["partial_rotary_factor"] == 0.5
        assert config.rotary_dim == WIDTH // 2
    assert NSADecoderConfig(head_dim=WIDTH).rotary_dim == WIDTH


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (rope(0.0), "partial_rotary_factor must be a number above 0 and at most 1, got 0.0"),
        (rope(1.5), "above 0 and at most 1, got 1.5"),
        ({**rope(None), "partial_rotary_factor": "half"}, "got 'half'"),
        ({**rope(None), "partial_rotary_factor": True}, "got True"),
        (rope(0.45), "rotates 7 dimensions; RoPE turns pairs"),
        (rope(0.05), "rotates 0 dimensions"),
        ({**rope(None), "partial_rotary_factr": 0.5}, "did you mean 'partial_rotary_factor'"),
    ],
)
def test_an_impossible_share_is_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        NSADecoderConfig(head_dim=WIDTH, rope_parameters=parameters)


def test_a_slip_beside_rope_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'partial_rotary_factor'"):
        NSADecoderConfig(head_dim=WIDTH, partial_rotary_facter=0.5)
