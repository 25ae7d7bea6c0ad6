"""StreamingLLM against its definition: a cache of sinks and recent tokens, with slots as positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Glm4Config,
    PhiConfig,
    PreTrainedModel,
    SmolLM3Config,
)

from nsa_models.methods import MethodError, attach, make_method
from nsa_models.methods.streaming_llm import select, slot_position

from .conftest import SHAPE, read_alone, tokens

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


def test_keys_and_position_of_a_small_case() -> None:
    keep = select(torch.tensor([[7]]), 8, first=2, recent=3)
    assert keep.flatten().nonzero().flatten().tolist() == [0, 1, 4, 5, 6, 7]
    assert slot_position(torch.tensor([7]), 5).tolist() == [5]


@torch.no_grad()
def by_slots(model: PreTrainedModel, row: Tensor, first: int, recent: int) -> Tensor:
    """Logits [tokens, V] of a one-layer model whose cache keeps sinks and recent tokens, each at its slot.

    In one layer a key depends on its token and position alone, so a token's view is a short plain text.
    """
    out = []
    for t in range(len(row)):
        kept = [s for s in range(t + 1) if s < first or t - s <= recent]
        out.append(model(row[kept][None]).logits[0, -1])
    return torch.stack(out)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "decoder"])
@pytest.mark.parametrize(("first", "recent"), [(2, 5), (0, 6), (4, 1)])
@pytest.mark.parametrize("rope", [None, YARN])
def test_equals_a_cache_of_slots(
    make_model: Callable[..., PreTrainedModel],
    kind: str,
    first: int,
    recent: int,
    rope: dict[str, Any] | None,
) -> None:
    model = make_model(kind, num_hidden_layers=1, **({"rope_parameters": rope} if rope else {}))
    row = tokens(30)
    with attach(model, make_method("streaming-llm", first + recent, first=first)) as attached:
        streamed = read_alone(model, attached, row, 7)
    # cos and sin of models are float32
    torch.testing.assert_close(streamed, by_slots(model, row, first, recent), atol=1e-5, rtol=1e-5)


OTHERS: dict[str, Any] = {
    "interleaved": CohereConfig,
    "interleaved, half of a head": Glm4Config,
    "first half of a head": PhiConfig,
    "no positions in some layers": SmolLM3Config,
}


def other_model(name: str, layers: int) -> PreTrainedModel:
    """A small model of another rotary layout."""
    changes = {**SHAPE, "num_hidden_layers": layers, "max_position_embeddings": 128}
    if OTHERS[name] in (Glm4Config, PhiConfig):
        changes["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
        }
    if OTHERS[name] is SmolLM3Config:
        changes |= {"no_rope_layer_interval": 2}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(OTHERS[name](**changes)).to(torch.float64).eval()


@pytest.mark.parametrize("name", list(OTHERS))
def test_rotary_layout_is_found_by_looking_at_queries(name: str) -> None:
    model, row = other_model(name, 1), tokens(30)
    with attach(model, make_method("streaming-llm", 7, first=3)) as attached:
        streamed = read_alone(model, attached, row, 4)
    torch.testing.assert_close(streamed, by_slots(model, row, 3, 4), atol=1e-5, rtol=1e-5)


def test_layers_without_positions_are_not_turned() -> None:
    model = other_model("no positions in some layers", 4)
    with attach(model, make_method("streaming-llm", 7)) as attached:
        turned = [type(attached._rotations[layer]).__name__ for layer in attached.layers]
    assert turned == ["Rotation", "function", "Rotation", "function"]


def test_sink_distance_matters(
    make_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, row = make_model("llama", num_hidden_layers=1), tokens(30)
    method = make_method("streaming-llm", 7, first=3)
    with attach(model, method) as attached:
        slots = read_alone(model, attached, row, 0)
        monkeypatch.setattr(
            "nsa_models.methods.streaming_llm.slot_position", lambda positions, budget: positions
        )
        kept = read_alone(model, attached, row, 0)
    assert torch.equal(slots[:8], kept[:8])
    assert (slots[8:] - kept[8:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "decoder"])
def test_dense_while_the_cache_is_not_full(make_model: Callable[..., PreTrainedModel], kind: str) -> None:
    model, row = make_model(kind), tokens(30)
    dense = read_alone(model, None, row, 0)
    with attach(model, make_method("streaming-llm", 12)) as attached:
        sparse = read_alone(model, attached, row, 0)
    torch.testing.assert_close(sparse[:13], dense[:13], rtol=1e-9, atol=1e-9)  # t <= first + recent
    assert (sparse[13] - dense[13]).abs().max() > 1e-4


def test_half_precision_models_are_looked_at_too(make_model: Callable[..., PreTrainedModel]) -> None:
    model, row = make_model("llama", num_hidden_layers=1).to(torch.bfloat16), tokens(30)
    with attach(model, make_method("streaming-llm", 7, first=3)) as attached:
        streamed = read_alone(model, attached, row, 0)
    reference = by_slots(model, row, 3, 4)
    assert (streamed - reference).abs().max() < 0.1 * reference.abs().max()


@pytest.mark.parametrize("kind", ["llama", "decoder"])
def test_frequencies_that_move_are_refused(make_model: Callable[..., PreTrainedModel], kind: str) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = make_model(kind, rope_parameters=rope)
    with pytest.raises(
        MethodError, match=r"streaming-llm: .*\(dynamic\) changes its frequencies with the length"
    ):
        attach(model, make_method("streaming-llm", 8))
    before = read_alone(model, None, tokens(10), 0)
    with attach(model, make_method("exact-top", 8, first=1, local=2)):  # needs no rotation
        pass
    assert torch.equal(read_alone(model, None, tokens(10), 0), before)


def test_model_without_rotary_embedding_is_refused_and_left_as_it_was() -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    before = read_alone(model, None, tokens(10), 0)
    with pytest.raises(MethodError, match="layer 0 of GPT2LMHeadModel has no rotary embedding that explains"):
        attach(model, make_method("streaming-llm", 8))
    assert torch.equal(read_alone(model, None, tokens(10), 0), before)
    attach(model, make_method("exact-top", 8, first=1, local=2)).detach()


def test_sliding_layers_stay_dense_and_are_named() -> None:
    config = Cohere2Config(
        **SHAPE, sliding_window=8, layer_types=["sliding_attention", "sliding_attention", "full_attention"]
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    row = tokens(30)
    with attach(model, make_method("streaming-llm", 7, dense_layers=(1,))) as attached:
        assert attached.layers == (2,)
        assert attached.notes == (
            "layer 1 dense, as streaming-llm asks",
            "layers 0, 1 dense: sliding window",
        )
        read_alone(model, attached, row, 1)
        reads = [layer.counts.read for layer in attached.reads.last]
    assert reads == [4 * 8, 4 * 8, 4 * 8]  # the window, the window, sinks + recent + own
    full = make_method("exact-top", 64, first=0, local=0)
    dense = read_alone(model, None, row, 3)
    with attach(model, full) as attached:
        torch.testing.assert_close(read_alone(model, attached, row, 3), dense, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 4}, "budget must be above first = 4"),
        ({"budget": 8, "first": -1}, "first must be at least 0 tokens, got -1"),
    ],
)
def test_no_room_for_a_recent_token_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(MethodError, match=f"streaming-llm: {message}"):
        make_method("streaming-llm", **options)
