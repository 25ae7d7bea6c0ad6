"""Config fields set anew on loaded weights, and what a model says it runs on."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import nsa_models
from nsa_kernels import NUMERICS
from nsa_models import NSADecoderConfig, NSADecoderForCausalLM, running_backend, with_fields
from nsa_models.lower_right import IMPLEMENTATION, prefer_lower_right
from nsa_models.methods import attach, parse_method

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
GRID = {"nsa_block": 8, "nsa_stride": 4, "nsa_select_block": 8, "nsa_select_count": 4, "nsa_window": 16}


def make(kind):
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    return NSADecoderForCausalLM(NSADecoderConfig(**SHAPE, head_dim=16, attention=kind, **GRID)).eval()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("nsa", {"nsa_select_count": 6}),
        ("nsa", {"nsa_window": 40, "nsa_select_count": 3}),
        ("nsa", {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
        ("llama", {"rms_norm_eps": 0.5}),
    ],
)
def test_a_variant_answers_as_a_checkpoint_with_that_config_would(kind, fields, tmp_path):
    model = make(kind)
    model.save_pretrained(tmp_path)
    config = type(model.config).from_pretrained(tmp_path)
    for name, value in fields.items():
        setattr(config, name, value)
    config = type(config).from_dict(config.to_dict())
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, config=config, dtype=torch.float32).eval()
    tokens = torch.randint(128, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, found, wanted = (m(tokens).logits for m in (model, with_fields(model, fields), reloaded))
        after = model(tokens).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)  # a file's weights lie at other addresses
    assert not torch.allclose(found, before, atol=1e-3)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_weights_are_shared_and_not_copied():
    model = make("nsa")
    variant = with_fields(model, {"nsa_select_count": 6})
    own = dict(model.named_parameters())
    assert all(weight.data_ptr() == own[name].data_ptr() for name, weight in variant.named_parameters())
    assert variant.lm_head.weight is variant.model.embed_tokens.weight


def test_values_that_are_there_already_give_the_model_itself():
    model = make("nsa")
    assert with_fields(model, {"nsa_select_count": 4}) is model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nsa_select_cout": 4}, "no field 'nsa_select_cout' to set; did you mean 'nsa_select_count'"),
        ({"hidden_size": 64}, "the weights have another shape"),
        ({"nsa_stride": 3}, "nsa_stride = 3: the model can't be made so"),
        ({"model_type": "llama"}, "no field 'model_type' to set"),
    ],
)
def test_what_cannot_be_set_is_named(fields, message):
    with pytest.raises(nsa_models.ModelLoadError, match=message):
        with_fields(make("nsa"), fields)


def test_the_backend_is_what_runs_and_not_what_was_asked_for():
    nsa, llama = make("nsa"), make("llama")
    assert nsa.config.nsa_backend == "auto"
    found = running_backend(nsa)
    assert (found.name, found.numerics) == ("torch", NUMERICS)
    assert found.package.startswith("torch 2.")
    assert (running_backend(llama).name, running_backend(llama).numerics) == ("sdpa", None)
    with attach(llama, parse_method("streaming-llm:64")):
        assert running_backend(llama).numerics == NUMERICS
    assert prefer_lower_right(llama)
    assert (running_backend(llama).name, running_backend(llama).numerics) == (IMPLEMENTATION, NUMERICS)
    assert running_backend(make("full")).numerics == NUMERICS
    nsa.config.nsa_backend = "reference"
    assert running_backend(nsa).name == "reference"


def test_the_plain_fields_tell_two_checkpoints_apart(nsa_checkpoint):
    import json

    from nsa_models import load_config, plain_fields

    before = plain_fields(load_config(str(nsa_checkpoint)))
    file = nsa_checkpoint / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "nsa_select_count": 3}))
    after = plain_fields(load_config(str(nsa_checkpoint)))
    assert {name for name in after if after[name] != before.get(name)} == {"nsa_select_count"}
    assert after["nsa_select_count"] == 3
    assert "rope_parameters.rope_theta" in after
    assert json.loads(json.dumps(after)) == after
