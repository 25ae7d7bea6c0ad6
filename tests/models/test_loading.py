"""Loading a checkpoint: what a spec means, what the options do, and one clear message for each damage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

import nsa_models.checkpoints
from nsa_models import (
    ModelLoadError,
    NSADecoderConfig,
    NSADecoderForCausalLM,
    fingerprint,
    load_config,
    load_model,
    load_tokenizer,
    resolve,
    zoo,
)

WEIGHTS = "model.safetensors"
Weights = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def no_hub_and_own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test asks the network or writes to the user's cache."""

    def refuse(*_: object, **__: object) -> str:
        raise ConnectionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def change_weights(folder: Path, change: Callable[[Weights], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def refused(folder: Path | str, **options: Any) -> str:
    """The one message of a model that can't be loaded."""
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder), **options)
    return str(caught.value)


# --- a sound checkpoint ---


def test_a_folder_loads_whole_and_ready(checkpoint: Path) -> None:
    model = load_model(str(checkpoint), device="cpu")
    saved = load_file(checkpoint / WEIGHTS)
    loaded = model.state_dict()
    assert not model.training
    assert saved.keys() <= loaded.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in saved.items())
    config, tokenizer = load_config(str(checkpoint)), load_tokenizer(str(checkpoint))
    assert config.vocab_size == len(tokenizer) == model.config.vocab_size
    text = "7 mills, 12 bridges"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert model(torch.tensor([ids])).logits.shape == (1, len(ids), len(tokenizer))


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_dtype_on_a_cpu(nsa_checkpoint: Path, asked: str, got: torch.dtype) -> None:
    change_weights(nsa_checkpoint, lambda w: w.update({name: x.bfloat16() for name, x in w.items()}))
    change_config(nsa_checkpoint, dtype="bfloat16")
    model = load_model(str(nsa_checkpoint), dtype=asked, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {got}


def test_backend_reaches_the_attention(saved_models: Path) -> None:
    assert load_model(str(saved_models / "nsa"), backend="reference").config.nsa_backend == "reference"
    assert load_model(str(saved_models / "llama"), backend="eager").config._attn_implementation == "eager"


def test_other_models_take_no_notice_of_our_backends(saved_models: Path) -> None:
    own_choice = load_model(str(saved_models / "llama")).config._attn_implementation
    assert load_model(str(saved_models / "llama"), backend="torch").config._attn_implementation == own_choice


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be auto, float32, bfloat16, float16, got 'int8'"),
        ({"device": "abacus"}, "device must be auto, cpu, cuda or cuda:N, got 'abacus'"),
        ({"device": "meta"}, "meta holds no weights"),
    ],
)
def test_an_option_out_of_range_is_named(checkpoint: Path, options: dict[str, str], message: str) -> None:
    assert message in refused(checkpoint, **options)


@pytest.mark.skipif(torch.xpu.is_available(), reason="this machine has one")
def test_another_accelerator_that_is_not_there(checkpoint: Path) -> None:
    assert refused(checkpoint, device="xpu") == "device 'xpu' was asked for, but torch has none here; use cpu"


def test_an_unknown_backend_is_refused_before_the_weights_are_read(saved_models: Path) -> None:
    assert refused(saved_models / "nsa", backend="magic").startswith(
        "unknown backend 'magic': choose auto, reference, torch"
    )
    assert 'attn_implementation="magic"' in refused(saved_models / "llama", backend="magic")


def test_cuda_on_a_machine_without_one(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(checkpoint, device="cuda:1")
    assert message == "device 'cuda:1' was asked for, but torch sees no CUDA device here; use cpu or auto"


def test_a_cuda_device_past_the_last(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = refused(checkpoint, device="cuda:2")
    assert message == "device 'cuda:2' was asked for, but this machine has 2 CUDA device(s)"


def test_loading_says_nothing_and_leaves_transformers_as_it_was(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity())
    load_model(str(checkpoint))
    change_config(checkpoint, intermediate_size=56)
    refused(checkpoint)
    assert capfd.readouterr().err == ""
    assert (transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()) == before


def test_a_user_who_wants_no_progress_bars_keeps_none(checkpoint: Path) -> None:
    transformers_logging.disable_progress_bar()
    try:
        load_model(str(checkpoint))
        assert not transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.enable_progress_bar()


# --- where a checkpoint is ---


def test_an_unknown_zoo_name_lists_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        (tmp_path / "zoo" / name / "config.json").write_text("{}")
    monkeypatch.setattr(nsa_models.checkpoints, "_ZOO", tmp_path / "zoo")
    assert refused("zoo:third") == "zoo:third: no such bundled model; there are zoo:first, zoo:second"
    assert resolve("zoo:second") == str(tmp_path / "zoo" / "second")
    monkeypatch.setattr(nsa_models.checkpoints, "_ZOO", tmp_path / "empty")
    assert refused("zoo:third").endswith("there are none")


def test_the_zoo_tells_what_it_reads(nsa_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = "---\nlicense: apache-2.0\n---\n# A title\n\nWhat it\nis.\n\nMore.\n"
    (nsa_checkpoint / "README.md").write_text(card)
    monkeypatch.setattr(nsa_models.checkpoints, "_ZOO", nsa_checkpoint.parent)
    (entry,) = zoo()
    assert (entry.name, entry.path, entry.attention) == ("nsa", nsa_checkpoint, "nsa")
    assert entry.max_length == 256
    assert entry.description == "What it is."
    assert entry.parameters == sum(p.numel() for p in load_model(str(nsa_checkpoint)).parameters())


@pytest.mark.parametrize("spec", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "~nobody/x", "a/b/c"])
def test_a_missing_folder(spec: str) -> None:
    assert refused(spec) == f"{spec}: no such folder"


def test_a_file_in_place_of_its_folder(checkpoint: Path) -> None:
    file = checkpoint / WEIGHTS
    assert refused(file) == f"{file}: give the checkpoint's folder, not a file in it"


def test_a_hub_id_is_downloaded_without_pickles(
    nsa_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(nsa_checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("someone/model") == "someone/model"
    assert isinstance(load_model("someone/model", revision="v2"), NSADecoderForCausalLM)
    assert isinstance(load_config("someone/model"), NSADecoderConfig)
    assert [asking[:2] for asking in asked] == [("someone/model", "v2"), ("someone/model", None)]
    with_weights, without = (patterns for _, _, patterns in asked)
    assert "*.safetensors" in with_weights
    assert "*.safetensors" not in without
    assert not any("bin" in pattern or ".pt" in pattern for pattern in with_weights)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused("someone/model")
    assert message.startswith("someone/model: no such folder here, and it can't be had from the hub")
    assert "(the network was asked)" in message
    assert "zoo:NAME" in message
    assert "\n" not in message


# --- damaged checkpoints: one message each, of one line ---


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def leave_only_pickles(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def cut_in_half(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def put_nan(folder: Path) -> None:
    change_weights(folder, lambda w: w["model.layers.1.mlp.up_proj.weight"][3, 5].fill_(float("nan")))


def ask_for_remote_code(folder: Path) -> None:
    auto = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    change_config(folder, model_type="x_decoder", auto_map=auto)
    (folder / "configuration_x.py").write_text("raise SystemExit('this code must not run')\n")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (remove_config, "the folder has no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text('{"model_type":'), "not a valid JSON file"),
    "wrong type": (lambda f: change_config(f, hidden_size="big"), "'hidden_size' expected int, got str"),
    "unknown model type": (lambda f: change_config(f, model_type="no_such"), "model type `no_such`"),
    "no language model": (lambda f: change_config(f, model_type="vit"), "Unrecognized configuration class"),
    "remote code": (
        ask_for_remote_code,
        "needs modelling code of its own; read it, then allow it by name with",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no .safetensors weights in"),
    "pickle": (leave_only_pickles, "only pickled weights (pytorch_model.bin), which can run code"),
    "truncated": (cut_in_half, f"{WEIGHTS} ("),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "(0 bytes) is truncated or not a safetensors file"),
    "garbage": (lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04" * 500), "not a safetensors file"),
    "wrong shape": (
        lambda f: change_config(f, intermediate_size=56),
        "weights of another shape than config.json says: model.layers.0.mlp.down_proj.weight is [32, 48], "
        "not [32, 56], ",
    ),
    "missing tensor": (
        lambda f: change_weights(f, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")),
        "the weight files lack model.layers.1.mlp.up_proj.weight, which would be evaluated at random values",
    ),
    "missing layer": (lambda f: change_config(f, num_hidden_layers=3), "weight files lack model.layers.2."),
    "NaN": (put_nan, "NaN or infinite weights in model.layers.1.mlp.up_proj.weight;"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_checkpoint_is_refused_in_one_line(checkpoint: Path, damage: str) -> None:
    hurt, expected = DAMAGES[damage]
    hurt(checkpoint)
    message = refused(checkpoint)
    assert message.startswith(f"{checkpoint}: ")
    assert expected in message
    assert "\n" not in message


def test_truncation_is_told_with_the_size_and_what_to_do(checkpoint: Path) -> None:
    cut_in_half(checkpoint)
    size = (checkpoint / WEIGHTS).stat().st_size
    message = refused(checkpoint)
    assert f"({size:,} bytes) is truncated or not a safetensors file" in message
    assert message.endswith("copy or download it again")


def test_a_missing_shard_is_named(saved_models: Path, tmp_path: Path) -> None:
    load_model(str(saved_models / "llama")).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    first = min((tmp_path / "shards").glob("model-*.safetensors"))
    load_model(str(tmp_path / "shards"))
    first.unlink()
    assert first.name in refused(tmp_path / "shards")


def test_an_impossible_block_grid_is_explained(nsa_checkpoint: Path) -> None:
    change_config(nsa_checkpoint, nsa_stride=3)
    assert "8 is no multiple of 3" in refused(nsa_checkpoint)


def test_an_unknown_rope_scaling_is_explained(nsa_checkpoint: Path) -> None:
    change_config(nsa_checkpoint, rope_parameters={"rope_type": "spiral", "rope_theta": 1e4})
    assert "rope_type must be one of default, " in refused(nsa_checkpoint)


@pytest.mark.parametrize("how", ["none", "broken"])
def test_a_checkpoint_without_a_usable_tokenizer(checkpoint: Path, how: str) -> None:
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    if how == "broken":
        (checkpoint / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError) as caught:
        load_tokenizer(str(checkpoint))
    message = str(caught.value)
    assert message.startswith(f"{checkpoint}: ")
    assert ("no tokenizer in" if how == "none" else "can't be loaded: Expecting property name") in message
    assert "\n" not in message


# --- fingerprints ---


def test_a_copy_has_the_same_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    first = fingerprint(str(checkpoint))
    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere")
    os.utime(copy / WEIGHTS, (1, 1))
    assert fingerprint(str(copy)) == first
    assert len(first) == 64
    assert int(first, 16) >= 0


def nudge_a_weight(folder: Path) -> None:
    change_weights(folder, lambda w: w["model.norm.weight"][0].add_(1e-3))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (nudge_a_weight, False),
        (lambda f: change_config(f, rms_norm_eps=1e-5), False),
        (lambda f: (f / "tokenizer_config.json").write_text("{}"), False),
        (lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"), False),
        (lambda f: (f / "special_tokens_map.json").write_text("{}"), False),
        (lambda f: (f / "modeling_x.py").write_text("x = 1"), False),
        (lambda f: (f / "README.md").write_text("# A card"), True),
        (lambda f: (f / "log.jsonl").write_text("{}"), True),
    ],
    ids=["weight", "config", "tokenizer", "template", "special tokens", "code", "card", "log"],
)
def test_a_fingerprint_tells_what_a_model_answers(
    checkpoint: Path, change: Callable[[Path], object], same: bool
) -> None:
    before = fingerprint(str(checkpoint))
    change(checkpoint)
    assert (fingerprint(str(checkpoint)) == before) is same


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    whole = Path.open

    def counted(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "rb":
            read.append(path.name)
        return whole(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counted)
    return read


def test_weights_are_read_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_reads(monkeypatch)
    first = fingerprint(str(checkpoint))
    assert read.count(WEIGHTS) == 1
    assert fingerprint(str(checkpoint)) == first
    assert read.count(WEIGHTS) == 1
    os.utime(checkpoint / WEIGHTS, (1, 1))  # touched: read again, and found to be the same
    assert fingerprint(str(checkpoint)) == first
    assert read.count(WEIGHTS) == 2


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_spoilt_memory_costs_nothing(checkpoint: Path, tmp_path: Path, content: str) -> None:
    first = fingerprint(str(checkpoint))
    (tmp_path / "cache" / "nsa-eval" / "hashes.json").write_text(content)
    assert fingerprint(str(checkpoint)) == first


def test_a_cache_folder_that_cannot_be_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fingerprint(str(checkpoint))
    (tmp_path / "file").write_text("")  # a file in place of the folder: not even root can write there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fingerprint(str(checkpoint)) == first


@pytest.mark.parametrize("order", ["import nsa_models, transformers", "import transformers, nsa_models"])
def test_importing_the_package_is_enough_for_the_auto_classes(nsa_checkpoint: Path, order: str) -> None:
    code = (
        f"{order}\n"
        f"model = transformers.AutoModelForCausalLM.from_pretrained({str(nsa_checkpoint)!r})\n"
        "print(type(model).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "NSADecoderForCausalLM\n", done.stderr
