"""What a method can't be attached to, and calls that it refuses."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaForCausalLM,
    PreTrainedModel,
    StaticCache,
)

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM, StaticDecoder, why_not_captured
from nsa_models.methods import Attached, MethodError, attach, attached_to, make_method

from .conftest import SHAPE, Rows, read_alone, tokens

METHOD = make_method("exact-top", 9, first=2, local=3)


@pytest.fixture
def llama(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_model("llama")


def of_type(model_type: str, **changes: Any) -> PreTrainedModel:
    """A small random model of a type of transformers."""
    config = AutoConfig.for_model(model_type, **{**SHAPE, **changes})
    return AutoModelForCausalLM.from_config(config).to(torch.float64).eval()


REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "NSA": (
        lambda: NSADecoderForCausalLM(NSADecoderConfig(**SHAPE)),
        "NSADecoderForCausalLM has 'nsa' attention and is sparse already",
    ),
    "own attention": (
        lambda: of_type("bloom", n_layer=2, n_head=4),
        r"BloomForCausalLM.* has an attention of its own that can't be replaced",
    ),
    "recurrent": (
        lambda: of_type("mamba", num_hidden_layers=2, state_size=4),
        "MambaForCausalLM .*",
    ),
    "some layers recurrent": (
        lambda: of_type(
            "qwen3_next",
            num_hidden_layers=2,
            layer_types=["linear_attention", "full_attention"],
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=8,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        r"layers that aren't softmax attention \(linear_attention\)",
    ),
    "soft caps": (
        lambda: of_type("gemma2", layer_types=["full_attention"] * 3),
        r"caps its logits softly \(attn_logit_softcapping\)",
    ),
    "learned sinks": (
        lambda: of_type(
            "gpt_oss",
            num_hidden_layers=2,
            layer_types=["full_attention"] * 2,
            num_local_experts=2,
            num_experts_per_tok=1,
        ),
        r"learned sinks in its softmax \(s_aux\)",
    ),
    "encoder and decoder": (
        lambda: AutoModelForSeq2SeqLM.from_config(
            AutoConfig.for_model("t5", d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=61)
        ),
        "is an encoder and a decoder",
    ),
    "sliding everywhere": (
        lambda: of_type("mistral", sliding_window=8),
        "nothing would be sparse in MistralForCausalLM of 3 layers: none of its layers is full attention",
    ),
}


@pytest.mark.parametrize("trait", list(REFUSED))
def test_models_that_cannot_take_a_method_are_refused(trait: str) -> None:
    make, message = REFUSED[trait]
    model = make()
    before = model.config._attn_implementation
    with pytest.raises(MethodError, match=f"exact-top: .*{message}"):
        attach(model, METHOD)
    assert model.config._attn_implementation == before
    assert attached_to(model) is None


def test_second_method_is_refused_and_the_first_stays(model: PreTrainedModel) -> None:
    row = tokens(30)
    with attach(model, METHOD) as attached:
        expected = read_alone(model, attached, row, 2)
        with pytest.raises(MethodError, match=r"streaming-llm: exact-top@9-first=2-local=3 is on this"):
            attach(model, make_method("streaming-llm", 8))
        assert attached_to(model) is attached
        assert torch.equal(read_alone(model, attached, row, 2), expected)
    assert attached_to(model) is None


def test_model_that_shares_the_config_of_an_attached_one_is_refused(llama: PreTrainedModel) -> None:
    twin = LlamaForCausalLM(llama.config).to(torch.float64).eval()
    dense = read_alone(twin, None, tokens(30), 2)
    with attach(llama, METHOD):
        with pytest.raises(MethodError, match="or on one that shares its config"):
            attach(twin, METHOD)
        assert torch.equal(read_alone(twin, None, tokens(30), 2), dense)


def test_eager_model_goes_back_to_eager(llama: PreTrainedModel) -> None:
    llama.set_attn_implementation("eager")
    dense = read_alone(llama, None, tokens(30), 2)
    attach(llama, METHOD).detach()
    assert llama.config._attn_implementation == "eager"
    assert torch.equal(read_alone(llama, None, tokens(30), 2), dense)


def test_a_model_is_not_kept_alive(make_model: Callable[..., PreTrainedModel]) -> None:
    for kind in ("llama", "decoder"):
        model = make_model(kind)
        attached = attach(model, METHOD)
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None
        assert not attached.attached
        attached.detach()
        with pytest.raises(MethodError, match="no longer exists"):
            _ = attached.model


def test_masks_that_are_not_causal_are_refused(llama: PreTrainedModel) -> None:
    ids = tokens(6)[None]
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    prefix, packed = causal.clone(), causal.clone()
    prefix[:3, :3] = True
    packed[3:, :3] = False
    with attach(llama, METHOD):
        for mask in (prefix, packed):
            with pytest.raises(MethodError, match="isn't plain causal attention over each row's tokens"):
                llama(ids, attention_mask=mask[None, None])
        with pytest.raises(MethodError, match=r"torch\.float64"):
            llama(ids, attention_mask=torch.zeros(1, 1, 6, 6, dtype=torch.float64))
        assert llama(ids, attention_mask=causal[None, None]).logits.isfinite().all()


def test_attention_weights_are_refused(llama: PreTrainedModel) -> None:
    with attach(llama, METHOD), pytest.raises(MethodError, match="attention weights aren't kept"):
        llama(tokens(6)[None], output_attentions=True)


def test_cache_of_fixed_size_is_refused(llama: PreTrainedModel) -> None:
    row = tokens(20)
    cache = StaticCache(config=llama.config, max_cache_len=32)
    with attach(llama, METHOD), pytest.raises(MethodError, match="a cache that grows"):
        llama(row[None], past_key_values=cache, use_cache=True)
    cache = StaticCache(config=llama.config, max_cache_len=32)
    llama(row[None], past_key_values=cache, use_cache=True)
    for piece in (row[:1], row[:3]):
        with attach(llama, METHOD), pytest.raises(MethodError, match="a cache that grows"):
            llama(piece[None], past_key_values=cache, use_cache=True)


def test_dense_layer_that_does_not_exist_is_refused(model: PreTrainedModel) -> None:
    method = make_method("exact-top", 9, first=2, local=3, dense_layers=(1, 3))
    with pytest.raises(MethodError, match=r"exact-top: dense_layers names layer 3, and .* has 3 layers"):
        attach(model, method)


def test_unknown_auto_phase_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(MethodError, match="auto_phase must be None or \"generate\", got 'steps'"):
        attach(llama, METHOD, auto_phase="steps")  # type: ignore[arg-type]


def test_phase_holds_within_its_block_only(llama: PreTrainedModel) -> None:
    attached = attach(llama, METHOD)
    with attached.decoding():
        assert attached.phase == "decode"
        with attached.prefilling():
            assert attached.phase == "prefill"
        assert attached.phase == "decode"
    assert attached.phase == "prefill"
    with pytest.raises(RuntimeError), attached.decoding():
        raise RuntimeError
    assert attached.phase == "prefill"
    attached.detach()


def test_reads_can_begin_anew(llama: PreTrainedModel) -> None:
    with attach(llama, METHOD) as attached:
        read_alone(llama, attached, tokens(30), 2)
        assert attached.reads.prefill.per_query < attached.reads.decode.per_query == 9
        attached.reads.reset()
        assert attached.reads.last == []
        assert attached.reads.prefill.queries == attached.reads.decode.read == 0
        assert attached.reads.decode.per_query == 0.0


def test_no_graph_is_captured_under_a_method(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model("decoder")
    with attach(model, METHOD):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "device", torch.device("cuda"))
            assert "a sparse method is attached" in str(why_not_captured(model))
        assert "GPU" in str(why_not_captured(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "device", torch.device("cuda"))
        assert why_not_captured(model) is None


@torch.no_grad()
def test_steps_of_fixed_shapes_equal_ordinary_steps(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model("decoder")
    rows = [tokens(25, seed=2), tokens(17, seed=3)]

    def prompts(attached: Attached) -> Rows:
        read = Rows(model, 2, attached)
        read.feed(rows)
        return read

    with attach(model, METHOD) as attached:
        expected = torch.cat(prompts(attached).feed([tokens(1), tokens(1)], decode=True))
        decoder = StaticDecoder(model, prompts(attached).cache, max_new_tokens=3)
        with attached.decoding():
            torch.testing.assert_close(decoder.step([int(tokens(1))] * 2), expected)
        assert attached.reads.last[0].counts.read == 2 * 4 * 9
