"""What `convert` writes, and that a path to a foreign checkpoint means the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import nsa_models
from nsa_models import (
    Choices,
    ModelLoadError,
    NSADecoderConfig,
    convert,
    fingerprint,
    fingerprint_of,
    import_notes,
    load_config,
    load_model,
    load_tokenizer,
)
from nsa_models.imports import formats
from nsa_models.methods import attach, parse_method

from .conftest import CASES

MakeCheckpoint = Callable[..., Path]
TOKENS = torch.arange(3, 63)[None]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@torch.no_grad()
@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("name", ["fla", "fla-biases-tied", "ssa-full", "minicpm-tied"])
def test_the_folder_opens_here_and_in_transformers(
    name: str, files: int, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    source = make_checkpoint(name, files=files)
    made = convert(str(source), tmp_path / "made", Choices(**CASES[name].choices))
    assert made.folder == tmp_path / "made"
    direct = load_model(str(source), device="cpu")
    expected = direct(TOKENS).logits
    assert torch.equal(load_model(str(made.folder), device="cpu")(TOKENS).logits, expected)
    theirs, info = AutoModelForCausalLM.from_pretrained(made.folder, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(theirs.eval()(TOKENS).logits, expected)
    assert AutoTokenizer.from_pretrained(made.folder)("12 mills").input_ids
    fields = nsa_models.plain_fields(AutoConfig.from_pretrained(made.folder))
    assert (
        fields == nsa_models.plain_fields(direct.config) == nsa_models.plain_fields(load_config(str(source)))
    )
    assert direct.config.name_or_path == direct.name_or_path == str(source)
    assert len(list(made.folder.glob("*.safetensors"))) == files
    weights = {n: x for file in made.folder.glob("*.safetensors") for n, x in load_file(file).items()}
    assert len(weights) == made.tensors
    assert ("lm_head.weight" in weights) != made.config.tie_word_embeddings


def test_weights_keep_their_dtype(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = make_checkpoint("fla", torch_dtype="bfloat16")
    halves = {name: x.bfloat16() for name, x in load_file(source / "model.safetensors").items()}
    save_file(halves, source / "model.safetensors", metadata={"format": "pt"})
    made = convert(str(source), tmp_path / "made")
    assert {x.dtype for x in load_file(made.folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((made.folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_model(str(source), device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_scaled_weights_are_written_in_float32(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Bfloat16 would round what the model's own code multiplies in the dtype that it runs in."""
    from safetensors.torch import save_file

    source = make_checkpoint("minicpm", torch_dtype="bfloat16")
    halves = {name: x.bfloat16() for name, x in load_file(source / "model.safetensors").items()}
    save_file(halves, source / "model.safetensors", metadata={"format": "pt"})
    made = load_file(convert(str(source), tmp_path / "made").folder / "model.safetensors")
    scaled = ("embed_tokens.weight", "o_proj.weight", "down_proj.weight", "lm_head.weight")
    assert {n for n, x in made.items() if x.dtype == torch.float32} == {n for n in made if n.endswith(scaled)}
    embeddings = halves["model.embed_tokens.weight"]
    assert torch.equal(made["model.embed_tokens.weight"], embeddings.float() * 12)
    loaded = load_model(str(source), device="cpu", dtype="bfloat16").model.embed_tokens.weight
    assert torch.equal(loaded, embeddings * 12), "as that code rounds it"


def test_the_record_says_what_it_was_made_of(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = make_checkpoint("fla-own-block")
    made = convert(str(source), tmp_path / "made", Choices(forced_blocks="own"))
    record = json.loads((made.folder / "conversion.json").read_text())
    assert record["fingerprint"] == fingerprint(str(source))
    assert record["choices"] == {"forced_blocks": "own", "reading": None}
    assert (record["model_type"], record["notes"]) == ("nsa", list(made.notes))
    (made.folder / "conversion.json").write_text("{}")
    before = fingerprint(str(made.folder))
    (made.folder / "conversion.json").unlink()
    assert fingerprint(str(made.folder)) == before


def test_generation_defaults_come_along(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = make_checkpoint("fla")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 9], "temperature": 0.5}))
    for folder in (source, convert(str(source), tmp_path / "made").folder):
        assert load_model(str(folder), device="cpu").generation_config.eos_token_id == [1, 9]


def test_config_and_tokenizer_are_read_as_here(make_checkpoint: MakeCheckpoint) -> None:
    source = make_checkpoint("fla-head-dim-not-as-said")
    config = load_config(str(source))
    assert isinstance(config, NSADecoderConfig)
    assert config.head_dim == 8
    assert (config.nsa_block, config.nsa_stride, config.nsa_select_block) == (8, 8, 8)
    assert (
        load_tokenizer(str(source))("12 mills").input_ids == load_tokenizer(str(source))("12 mills").input_ids
    )
    (source / "model.safetensors").unlink()
    assert load_config(str(source)).head_dim == 4  # nothing else is known without the weights


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fla", ["read as fla since August 2025, block 0 and the last two"]),
        (
            "fla-small-blocks",
            ["fla since August 2025 refuses such a block_size", "2 best blocks out of every 4"],
        ),
        (
            "minicpm-sparse",
            [
                "infllm-v2:20,kernel=4,stride=2,block=4,window=8,dense_length=20 where topk counts all",
                "infllm-v2:28,kernel=4,stride=2,block=4,window=8,dense_length=20 where local blocks come",
            ],
        ),
        ("minicpm-longer", ["long factors are used for texts of any length"]),
        ("fla-head-dim-not-as-said", ["head_dim 4, but the weights are of heads 8 wide"]),
        ("fla-odd-count", ["block_counts 3", "nsa_select_count is 4"]),
        ("llama-nsa", []),
    ],
)
def test_what_the_files_do_not_tell_is_noted(
    name: str, said: list[str], make_checkpoint: MakeCheckpoint
) -> None:
    notes = import_notes(str(make_checkpoint(name)))
    assert all(any(part in note for note in notes) for part in said)
    if not said:
        assert notes == ()


@torch.no_grad()
def test_the_methods_that_a_note_names_can_be_attached(make_checkpoint: MakeCheckpoint) -> None:
    source = make_checkpoint("minicpm-sparse")
    model = load_model(str(source), device="cpu")
    dense = model(TOKENS).logits
    found = re.findall(r"infllm-v2:\S+", import_notes(str(source))[0])
    assert len(found) == 2
    for text in found:
        with attach(model, parse_method(text)) as attached:
            sparse = model(TOKENS).logits
            read = [attached.method.kv_reads(length) for length in range(1, 61)]
            assert attached.reads.prefill.read == 2 * 4 * sum(read), "2 layers of 4 heads"
        torch.testing.assert_close(sparse[:, :20], dense[:, :20], rtol=1e-4, atol=1e-4)
        assert float((sparse - dense)[:, 40:].abs().max()) > 1e-2


def test_a_kernel_that_keeps_fewer_blocks_is_noted(make_checkpoint: MakeCheckpoint) -> None:
    [note] = import_notes(str(make_checkpoint("llama-nsa", block_size=4)))
    assert "the 2 best blocks out of every 4; here the 4 best of all are selected" in note


def test_other_checkpoints_have_no_notes(saved_models: Path) -> None:
    assert import_notes(str(saved_models / "nsa")) == import_notes(str(saved_models / "llama")) == ()


def test_what_a_checkpoint_is_read_as_is_in_its_fingerprint_alone(
    make_checkpoint: MakeCheckpoint, saved_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, own = str(make_checkpoint("fla")), str(saved_models / "nsa")
    before = fingerprint_of(source), fingerprint_of(own)
    monkeypatch.setattr(nsa_models.imports, "READING", 99)
    assert fingerprint_of(source).changed(before[0].parts) == ["code"]
    assert fingerprint_of(own) == before[1]


def test_its_own_code_reads_it_where_that_may_run(make_checkpoint: MakeCheckpoint) -> None:
    source = make_checkpoint("llama-nsa")
    assert isinstance(load_config(str(source)), NSADecoderConfig)
    with pytest.raises(ModelLoadError, match=r"modeling_llama_nsa|can't be used"):
        load_config(str(source), trust_remote_code=True)


def test_triton_says_at_loading_what_it_does_not_force(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nsa_kernels.dispatch._missing", lambda _: None)
    with pytest.raises(
        ModelLoadError, match="forces the first 0 and the last 1: use auto, torch or reference"
    ):
        load_model(str(make_checkpoint("llama-nsa")), device="cpu", backend="triton")
    assert load_model(str(make_checkpoint("llama-nsa")), device="cpu", backend="torch")


def test_formats_are_found_by_their_files() -> None:
    assert set(formats()) == {"nsa", "llama-nsa", "minicpm"}
