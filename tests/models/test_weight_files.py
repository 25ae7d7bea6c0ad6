"""What of a checkpoint's folder is loaded, what is refused, and what its fingerprint holds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nsa_models import ModelLoadError, fingerprint, fingerprint_of, load_model, load_tokenizer, resolve

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def sharded(checkpoint: Path) -> Path:
    """The checkpoint with its weights in two shards and an index."""
    weights = load_file(checkpoint / WEIGHTS)
    names = sorted(weights)
    halves = {"a.safetensors": names[::2], "sub/b.safetensors": names[1::2]}
    (checkpoint / "sub").mkdir()
    for file, own in halves.items():
        save_file({name: weights[name] for name in own}, checkpoint / file, metadata={"format": "pt"})
    (checkpoint / WEIGHTS).unlink()
    placed = {name: file for file, own in halves.items() for name in own}
    (checkpoint / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return checkpoint


def move_shard(folder: Path, to: str) -> None:
    """Let the index name its first shard elsewhere, where it is."""
    index = json.loads((folder / INDEX).read_text())
    target = folder / to
    target.parent.mkdir(parents=True, exist_ok=True)
    (folder / "a.safetensors").rename(target)
    index["weight_map"] = {k: to if v == "a.safetensors" else v for k, v in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def refused(folder: Path) -> str:
    """The one message, of loading and of the fingerprint."""
    messages = set()
    for ask in (load_model, fingerprint):
        with pytest.raises(ModelLoadError) as caught:
            ask(str(folder))
        messages.add(str(caught.value))
    [message] = messages
    return message


def test_shards_in_the_folder_load_and_are_all_in_the_fingerprint(sharded: Path) -> None:
    load_model(str(sharded))
    before = fingerprint_of(str(sharded))
    for file in ("a.safetensors", "sub/b.safetensors"):
        weights = load_file(sharded / file)
        next(iter(weights.values())).view(-1)[0] += 1
        save_file(weights, sharded / file, metadata={"format": "pt"})
        after = fingerprint_of(str(sharded))
        assert after.changed(before.parts) == ["weights"]
        assert after.total != before.total
        before = after


@pytest.mark.parametrize("to", ["../ext.safetensors", "sub/../../ext.safetensors"])
def test_an_index_that_names_a_file_outside_is_refused(sharded: Path, to: str) -> None:
    move_shard(sharded, to)
    assert f"{INDEX} names {to!r}, which isn't a file in" in refused(sharded)


def test_an_index_that_names_an_absolute_path_is_refused(sharded: Path, tmp_path: Path) -> None:
    move_shard(sharded, str(tmp_path / "ext.safetensors"))
    assert "which isn't a file in" in refused(sharded)


def test_an_index_that_names_a_pickle_is_refused_and_the_pickle_not_opened(sharded: Path) -> None:
    move_shard(sharded, "evil.bin")
    (sharded / "evil.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert "'evil.bin', which isn't a safetensors file and could run code" in refused(sharded)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_told(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    assert INDEX in refused(sharded)


def test_weights_that_the_config_names_obey_the_same_rules(checkpoint: Path) -> None:
    change_config(checkpoint, transformers_weights="../other.safetensors")
    assert "config.json (transformers_weights) names '../other.safetensors'" in refused(checkpoint)
    (checkpoint / WEIGHTS).rename(checkpoint / "other.safetensors")
    change_config(checkpoint, transformers_weights="other.safetensors")
    load_model(str(checkpoint))
    assert len(fingerprint(str(checkpoint))) == 64


def test_a_link_to_nowhere_is_named_and_a_link_to_a_file_followed(checkpoint: Path, tmp_path: Path) -> None:
    """Links as the hub's cache makes them: a snapshot's files are links into its blobs."""
    before = fingerprint(str(checkpoint))
    blob = tmp_path / "blob"
    (checkpoint / WEIGHTS).rename(blob)
    (checkpoint / WEIGHTS).symlink_to(blob)
    assert fingerprint(str(checkpoint)) == before
    blob.unlink()
    assert f"{WEIGHTS} is a link to {blob}, which isn't there" in refused(checkpoint)


def test_a_tokenizer_file_that_is_a_link_to_nowhere_has_no_fingerprint(checkpoint: Path) -> None:
    (checkpoint / "special_tokens_map.json").unlink(missing_ok=True)
    (checkpoint / "special_tokens_map.json").symlink_to("gone.json")
    with pytest.raises(ModelLoadError, match=r"is a link to gone\.json"):
        fingerprint(str(checkpoint))


def test_a_pipe_for_weights_is_refused_without_reading_it(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).unlink()
    os.mkfifo(checkpoint / WEIGHTS)
    assert f"{WEIGHTS} isn't a file" in refused(checkpoint)


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    """Change bytes in place, and put the time of change back."""
    stat = path.stat()
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def test_a_config_of_the_same_size_and_time_is_another_config(checkpoint: Path) -> None:
    before = fingerprint_of(str(checkpoint))
    rewrite(checkpoint / "config.json", b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05')
    assert fingerprint_of(str(checkpoint)).changed(before.parts) == ["config"]


def test_weights_of_the_same_size_and_time_are_other_weights(checkpoint: Path) -> None:
    before = fingerprint_of(str(checkpoint))
    data = (checkpoint / WEIGHTS).read_bytes()
    rewrite(
        checkpoint / WEIGHTS, data, data[:-4] + bytes(4) if data[-4:] != bytes(4) else data[:-4] + b"\1" * 4
    )
    assert fingerprint_of(str(checkpoint)).changed(before.parts) == ["weights"]


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("generation_config.json", "config"),
        ("tokenizer_config.json", "tokenizer"),
        ("additional_chat_templates/tool.jinja", "tokenizer"),
        ("modeling_x.py", "code"),
    ],
)
def test_what_has_changed_is_told_by_its_part(checkpoint: Path, file: str, part: str) -> None:
    before = fingerprint_of(str(checkpoint))
    (checkpoint / file).parent.mkdir(exist_ok=True)
    (checkpoint / file).write_text("{}")
    assert fingerprint_of(str(checkpoint)).changed(before.parts) == [part]


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_the_base_is_refused(checkpoint: Path, file: str) -> None:
    (checkpoint / file).write_text("{}")
    for ask in (load_model, load_tokenizer):
        with pytest.raises(ModelLoadError, match=rf"an adapter lies beside the model \({file}\).*merge it"):
            ask(str(checkpoint))


def test_an_adapter_alone_says_what_it_is(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    (checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"an adapter .* without its base model"):
        resolve(str(checkpoint))


def recast(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_coded_weights_without_a_quantization_config_are_refused(
    checkpoint: Path, dtype: torch.dtype
) -> None:
    def code(weights: dict[str, torch.Tensor]) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        weights[name] = (weights[name] * 100).to(dtype)

    recast(checkpoint, code)
    with pytest.raises(ModelLoadError, match=r"up_proj\.weight is [IUF]\d.*no quantization_config"):
        load_model(str(checkpoint))


def test_masks_and_positions_in_whole_numbers_are_no_weights(checkpoint: Path) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.self_attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
        weights["model.position_ids"] = torch.arange(4)

    recast(checkpoint, add)
    load_model(str(checkpoint))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("nsa_select_cout", "'nsa_select_count'"),
        ("nsa_windows", "'nsa_window'"),
        ("hiden_size", "'hidden_size'"),
        ("rope_parameter", "'rope_parameters'"),
    ],
)
def test_a_misspelt_field_of_our_decoder_is_refused(nsa_checkpoint: Path, name: str, near: str) -> None:
    change_config(nsa_checkpoint, **{name: 4})
    with pytest.raises(
        ModelLoadError, match=f"config.json can't be used: .*no field '{name}'; did you mean {near}"
    ):
        load_model(str(nsa_checkpoint))


def test_a_field_of_ours_that_is_like_none_is_refused_too(nsa_checkpoint: Path) -> None:
    change_config(nsa_checkpoint, nsa_xyzzy=1)
    with pytest.raises(ModelLoadError, match="there is no field 'nsa_xyzzy'"):
        load_model(str(nsa_checkpoint))


def test_fields_that_others_write_are_kept(nsa_checkpoint: Path) -> None:
    change_config(nsa_checkpoint, trained_by="someone", torch_dtype="float32", quantizer=None)
    assert load_model(str(nsa_checkpoint)).config.trained_by == "someone"


def test_a_value_of_the_wrong_type_is_named_by_the_tokenizer_too(nsa_checkpoint: Path) -> None:
    change_config(nsa_checkpoint, nsa_select_count="4")
    for ask in (load_tokenizer, load_model):
        with pytest.raises(
            ModelLoadError, match=r"config\.json can't be used: .*'nsa_select_count' expected int, got str"
        ):
            ask(str(nsa_checkpoint))
