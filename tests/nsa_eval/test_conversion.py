"""Another trainer's NSA checkpoint in a run, by its path and converted; the command line's convert."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import nsa_eval
from nsa_eval.cli import main

CONFIG = {
    "model_type": "nsa",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "block_size": 16,
    "block_counts": 4,
    "window_size": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@pytest.fixture
def source(tiny_checkpoints: list[Path], tmp_path: Path) -> Path:
    """A random checkpoint of fla's format with a tokenizer of 300 tokens."""
    folder = tmp_path / "fla-nsa"
    folder.mkdir()
    for path in tiny_checkpoints[0].glob("*token*"):
        shutil.copy(path, folder)
    torch.manual_seed(0)
    shapes = {f"attn.{name}_proj": (16, 16) for name in "qo"}
    shapes |= {f"attn.{name}_proj": (8, 16) for name in "kv"} | {"attn.g_proj": (12, 16)}
    shapes |= {"mlp.gate_proj": (32, 16), "mlp.up_proj": (32, 16), "mlp.down_proj": (16, 32)}
    weights = {f"model.layers.0.{name}.weight": torch.randn(*shape) for name, shape in shapes.items()}
    weights |= {f"model.layers.0.{name}_norm.weight": torch.ones(16) for name in ("attn", "mlp")}
    weights |= {"model.norm.weight": torch.ones(16), "lm_head.weight": torch.randn(300, 16)}
    weights |= {"model.embeddings.weight": torch.randn(300, 16)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def responses(folder: Path, model: str) -> list[Any]:
    """All replies of a model, in order."""
    lines = [
        json.loads(line)
        for path in sorted(folder.rglob("samples_*.jsonl"))
        if model in path.parts
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [line["resps"] for line in lines]


def test_a_run_reads_it_by_its_path_as_it_reads_the_conversion(
    source: Path, tmp_path: Path, tiny_config: Any
) -> None:
    converted = nsa_eval.convert(source, tmp_path / "converted").folder
    own = {"name": "own", "set": {"nsa_first_blocks": 0, "nsa_last_blocks": 1}}
    config = tiny_config(
        models=[
            {"name": "given", "path": str(source), "variants": [{}, own]},
            {"name": "converted", "path": str(converted)},
        ],
        tasks=[{"task": "needle_single", "lengths": [320], "depths": 2, "samples": 2, "new_tokens": 8}],
        compare={"baseline": "given", "resamples": 200},
    )
    result = nsa_eval.run(config, output=tmp_path / "run", progress=False)
    noted = [note for note in result.notes if "another trainer's checkpoint" in note]
    assert [note.split(":")[0] for note in noted] == ["given", "own"]
    audit = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert audit["given"][0]["detail"].startswith("config.json doesn't tell which blocks were forced")
    assert audit["converted"] == []
    given = responses(tmp_path / "run", "given")
    assert len(given) == 4
    assert given == responses(tmp_path / "run", "converted")


def test_the_command_says_what_was_written_and_decided(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["convert", str(source), str(tmp_path / "made")])
    output = capsys.readouterr().out
    assert not left.value.code
    assert output.startswith("note: config.json doesn't tell which blocks were forced in training")
    assert output.endswith(f"checkpoint: {tmp_path / 'made'} (13 tensors)\n")
    with pytest.raises(SystemExit):
        main(["convert", str(source), str(tmp_path / "own"), "--forced-blocks", "own"])
    assert "note:" not in capsys.readouterr().out
    assert json.loads((tmp_path / "own" / "config.json").read_text())["nsa_last_blocks"] == 1


def test_a_refusal_is_one_message(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "powlu"}))
    with pytest.raises(SystemExit) as left:
        main(["convert", str(source), str(tmp_path / "made")])
    assert left.value.code == 2
    assert capsys.readouterr().err.strip().endswith("only swish (silu) is the SwiGLU of this decoder")
