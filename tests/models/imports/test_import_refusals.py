"""What can't be represented exactly is refused with its reason, by `convert` and by a path alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nsa_models import Choices, ModelLoadError, convert, load_model

MakeCheckpoint = Callable[..., Path]
Weights = dict[str, torch.Tensor]


def refusal(folder: Path, tmp_path: Path, **choices: str) -> str:
    """The one message of both ways; nothing is left of the destination."""
    with pytest.raises(ModelLoadError) as by_convert:
        convert(str(folder), tmp_path / "made", Choices(**choices))
    assert not (tmp_path / "made").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".made")] == []
    if not choices:
        with pytest.raises(ModelLoadError) as by_path:
            load_model(str(folder), device="cpu")
        assert str(by_path.value) == str(by_convert.value)
    return str(by_convert.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fla", {"hidden_act": "powlu"}, "hidden_act 'powlu', and only swish"),
        (
            "fla",
            {"attnres_block_size": 4},
            "attnres_block_size 4, and this decoder has no attention residuals",
        ),
        ("fla", {"block_counts": None}, "block_counts None; expected a whole number from 1 on"),
        ("fla", {"block_counts": 2}, "select_count must be at least 3"),
        ("fla", {"window_size": -1}, "window_size -1; expected a whole number from 0 on"),
        ("fla", {"num_kv_heads": 3}, "num_attention_heads (4) must be a multiple of num_key_value_heads (3)"),
        ("fla", {"norm_eps": "small"}, "rms_norm_eps"),
        ("fla", {"use_sinks": True}, "keys that this version doesn't know for model_type 'nsa': use_sinks"),
        (
            "fla",
            {"quantization_config": {"bits": 4}},
            "doesn't know for model_type 'nsa': quantization_config",
        ),
        (
            "fla",
            {"num_hidden_layers": 3},
            "num_hidden_layers 3, but the weight files hold tensors of 2 layers",
        ),
        ("fla", {"num_hidden_layers": 10**7}, "but the weight files hold tensors of 2 layers"),
        ("fla", {"qkv_bias": True}, "the weight files lack model.layers.0.self_attn.k_proj.bias"),
        ("fla-biases-tied", {"qkv_bias": False}, "hold model.layers.0.self_attn.k_proj.bias, model"),
        ("fla", {"intermediate_size": 64}, "mlp.down_proj.weight is [32, 48], not [32, 64]"),
        ("fla", {"num_heads": 5}, "has 32 rows, no multiple of num_heads 5"),
        ("fla-biases-tied", {"tie_word_embeddings": False}, "the weight files lack lm_head.weight"),
        ("llama-nsa", {"attention_bias": True}, "attention_bias True, and this decoder's o_proj has no bias"),
        ("llama-nsa", {"mlp_bias": True}, "mlp_bias True, and"),
        ("llama-nsa", {"inference_mode": "dense"}, "inference_mode 'dense'; expected sparse or full"),
        ("llama-nsa", {"window_size": 0}, "config.json doesn't tell what reads these weights"),
        ("llama-nsa", {"rope_scaling": {"rope_type": "spiral"}}, "rope"),
        ("minicpm", {"scale_emb": 0}, "scale_emb 0; expected a number above 0"),
        ("minicpm", {"dim_model_base": None}, "dim_model_base None; expected a number above 0"),
        ("minicpm", {"num_experts": 8}, "doesn't know for model_type 'minicpm': num_experts"),
        ("minicpm", {"sparse_config": {"top_k": 3}}, "sparse_config {'top_k': 3}; expected a mapping of"),
        ("minicpm", {"tie_word_embeddings": True}, "lm_head.weight isn't the embeddings"),
    ],
)
def test_a_config_that_means_something_else(
    name: str, changes: dict[str, Any], message: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint(name, **changes)
    assert message in refusal(folder, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update({"model.layers.0.attn_res_proj.weight": torch.zeros(1, 32)}),
            "attn_res_proj.weight, which a",
        ),
        (lambda w: w.update({"extra": torch.zeros(1)}), "the weight files hold extra, which a model of"),
        (
            lambda w: w.pop("model.layers.1.mlp_norm.weight"),
            "lack model.layers.1.post_attention_layernorm.weight",
        ),
        (lambda w: w["model.norm.weight"].fill_(torch.nan), "NaN or infinite weights in model.norm.weight"),
        (lambda w: w.update({"model.norm.weight": torch.ones(31)}), "model.norm.weight is [31], not [32]"),
    ],
)
def test_weights_of_another_architecture(
    change: Callable[[Weights], Any], message: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint("fla")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert message in refusal(folder, tmp_path)


def test_a_tied_head_has_to_be_the_embeddings(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint("llama-nsa")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(folder), device="cpu").lm_head.weight.shape == (280, 32)
    weights["lm_head.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight isn't the embeddings" in refusal(folder, tmp_path)


def test_frequencies_that_were_saved_are_made_anew(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("fla")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.attn.rotary.inv_freq"] = torch.zeros(4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(folder), device="cpu").model.rotary_emb.inv_freq[0] == 1


def test_choices_are_named(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="forced_blocks must be paper or own, got 'none'"):
        Choices(forced_blocks="none")
    folder = make_checkpoint("fla")
    assert "reading 'full' is for llama-nsa" in refusal(folder, tmp_path, reading="full")


def test_only_foreign_checkpoints_are_converted(saved_models: Path, tmp_path: Path) -> None:
    message = refusal_of(saved_models / "llama", tmp_path / "made")
    named = re.search(r"none of the formats that are converted \(model_type ([^)]*)\)", message)
    assert named is not None
    assert sorted(named[1].split(", ")) == ["llama-nsa", "minicpm", "nsa"]


def test_nothing_is_written_over(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint("fla")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    assert "is there already, and not empty" in refusal_of(folder, tmp_path / "full")
    assert (tmp_path / "full" / "file").read_text() == "x"
    (tmp_path / "empty").mkdir()
    assert convert(str(folder), tmp_path / "empty").folder == tmp_path / "empty"


def refusal_of(source: Path, destination: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        convert(str(source), destination)
    return str(caught.value)
