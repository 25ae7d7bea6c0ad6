"""Neighbours that were trained sparse in a run: what is recorded of them, and weights of a method's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import DogeConfig, DogeForCausalLM, LlamaConfig, LlamaForCausalLM

import nsa_eval
from nsa_eval.errors import UserError

SHAPE = {
    "vocab_size": 384,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
TASKS = [{"task": "needle_single", "lengths": [256], "depths": 2, "samples": 1, "new_tokens": 4}]


@pytest.fixture
def checkpoint(tiny_checkpoints: list[Path], tmp_path: Path) -> Any:
    """Write a random model with a tokenizer."""

    def write(name: str, model: Any) -> Path:
        folder = tmp_path / name
        model.save_pretrained(folder)
        for path in tiny_checkpoints[0].glob("*token*"):
            shutil.copy(path, folder)
        return folder

    torch.manual_seed(0)
    return write


def settings_of(home: Path, name: str) -> dict[str, Any]:
    [file] = (home / name).glob("results_*.json")
    found: dict[str, Any] = json.loads(file.read_text())["config"]
    return found


def test_a_model_that_was_trained_sparse_says_what_it_reads(
    checkpoint: Any, tmp_path: Path, tiny_config: Any
) -> None:
    model = DogeForCausalLM(DogeConfig(**SHAPE, keep_window_size=64))
    torch.nn.init.normal_(model.model.layers[0].self_attn.A)
    folder = checkpoint("doge", model)
    wider = {"name": "wider", "set": {"keep_window_size": 512}}
    config = tiny_config(
        models=[{"name": "doge", "path": str(folder), "variants": [{}, wider]}], tasks=TASKS, compare={}
    )
    home = tmp_path / "run"
    result = nsa_eval.run(config, output=home, progress=False)
    assert any(
        "trained sparse, and run by transformers' code with 2 remarks" in note for note in result.notes
    )
    for name, budget in (("doge", 64), ("wider", 512)):
        said = f"DMA, {budget} KV tokens a query (keep_window_size)"
        assert settings_of(home, name)["attention"] == said
    audit = json.loads((home / "audit.json").read_text())
    assert [event["kind"] for event in audit["doge"]] == ["trained_sparse"] * 2


def test_weights_of_a_method_are_part_of_what_a_result_was_made_from(
    checkpoint: Any, tmp_path: Path, tiny_config: Any
) -> None:
    folder = checkpoint("llama", LlamaForCausalLM(LlamaConfig(**SHAPE)))
    gate = tmp_path / "gate.safetensors"

    def draw(seed: int) -> None:
        make, here = torch.Generator().manual_seed(seed), "model.layers.0.self_attn."
        made = {"delta.weight": torch.randn(2, 8, generator=make), "A": torch.randn(2, generator=make)}
        save_file({here + name: weight for name, weight in made.items()}, gate)

    method = {"name": "nosa", "budget": 32, "by_query": 24, "kernel": 4, "stride": 2, "block": 8, "window": 8}
    sparse = {"name": "sparse", "method": {**method, "weights": str(gate)}}
    config = tiny_config(
        models=[{"name": "dense", "path": str(folder), "variants": [sparse]}], tasks=TASKS, compare={}
    )
    home = tmp_path / "run"
    draw(0)
    nsa_eval.run(config, output=home, progress=False)
    before = settings_of(home, "sparse")["method_weights"]
    stored = (home / "store" / "responses.jsonl").read_text()
    nsa_eval.run(config, output=home, progress=False)
    assert (home / "store" / "responses.jsonl").read_text() == stored, "nothing has changed"
    draw(1)
    with pytest.raises(UserError, match=r"the weights of nosa in .*gate\.safetensors have changed since"):
        nsa_eval.run(config, output=home, progress=False)
    nsa_eval.run(config, output=home, progress=False, overwrite=True)
    assert settings_of(home, "sparse")["method_weights"] != before
    again = (home / "store" / "responses.jsonl").read_text()
    assert again.startswith(stored)
    assert len(again) > len(stored), "old responses answer nothing"
