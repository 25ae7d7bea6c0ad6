"""Which weight files of a checkpoint are loaded, checked before anything of them is.

All lie in the checkpoint's folder, all are safetensors, and all of them are in its fingerprint: an index that
names anything else is refused, since what it names could change unseen, or run code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from nsa_models.checkpoints import ADAPTER_CONFIG, ModelLoadError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_ADAPTERS = (ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin")
_CODED = ("I", "U", "BOOL", "F8", "F6", "F4")
"""How safetensors' names of whole numbers and of floating point in 8 bits or fewer begin."""
_PICKLES = ("*.bin", "*.pt", "*.pth")


def weight_files(spec: str, folder: Path) -> list[Path]:
    """The files that transformers reads a model's weights from, the index first where there is one.

    Args:
        spec: The model as the user named it, for messages.
        folder: Its folder.

    Raises:
        ModelLoadError: There are none; one is a pickle, isn't in the folder, or isn't there; or the index
            can't be read.
    """
    named = _named_by_config(folder)
    if named is not None:
        # transformers checks this name itself; the same rules as an index's hold for it here.
        file = _inside(
            spec, folder, named, "config.json (transformers_weights)", suffix=(_SUFFIX, _INDEX_SUFFIX)
        )
        return _shards(spec, folder, file) if named.endswith(_INDEX_SUFFIX) else [file]
    if there(spec, folder / SINGLE):
        return [folder / SINGLE]
    if there(spec, folder / INDEX):
        return _shards(spec, folder, folder / INDEX)
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if found:
        raise ModelLoadError(
            f"{spec}: neither {SINGLE} nor {INDEX} in {folder}, only {some_of(found)}; give the weights the "
            "names that save_pretrained gives them"
        )
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelLoadError(
            f"{spec}: only pickled weights ({some_of(pickles)}), which can run code when loaded; "
            "save the model as safetensors (model.save_pretrained does) and evaluate that"
        )
    raise ModelLoadError(f"{spec}: no .safetensors weights in {folder}")


def check_no_adapter(spec: str, folder: Path) -> None:
    """Refuse an adapter beside a model: without peft it would be passed over without a word.

    Raises:
        ModelLoadError: There is one.
    """
    found = [name for name in _ADAPTERS if os.path.lexists(folder / name)]
    if found:
        raise ModelLoadError(
            f"{spec}: an adapter lies beside the model ({', '.join(found)}), and adapters aren't applied: "
            "merge it (peft's merge_and_unload, then save_pretrained) and evaluate that, or move it away to "
            "evaluate the base model"
        )


def check_weight_files(spec: str, folder: Path, *, quantized: bool) -> int:
    """Open every weight file's header: whole, and of numbers that mean what they say.

    Args:
        spec: The model as the user named it.
        folder: Its folder.
        quantized: Whether its config says how whole numbers become weights.

    Returns:
        How many tensors the files hold.

    Raises:
        ModelLoadError: As `weight_files`; a file that is truncated or no safetensors file; integer or 8-bit
            weights whose scales nothing tells.
    """
    from safetensors import SafetensorError, safe_open

    tensors = 0
    for path in weight_files(spec, folder):
        if path.name.endswith(".json"):
            continue
        try:
            with safe_open(path, framework="pt") as file:
                tensors += len(file.keys())
                coded = [] if quantized else _coded(file)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{spec}: {path.name} ({path.stat().st_size:,} bytes) is truncated or not a safetensors file "
                f"({str(error).splitlines()[0]}); copy or download it again"
            ) from error
        if coded:
            raise ModelLoadError(
                f"{spec}: {path.name} stores weights as whole numbers or in 8 bits ({some_of(coded)}), and "
                "config.json has no quantization_config that says what they stand for; save the model in "
                "float32, bfloat16 or float16, or with the config it was quantized with"
            )
    return tensors


def _coded(file: Any) -> list[str]:  # noqa: ANN401  (safe_open, which has no type)
    """Weights and biases, not masks or positions, in whole numbers or floating point under 16 bits."""
    found = []
    for name in file.keys():  # noqa: SIM118 - not a dict
        last = name.rpartition(".")[2]
        if "weight" not in last and last != "bias":
            continue
        tensor = file.get_slice(name)
        dtype = str(tensor.get_dtype())
        mask = last == "bias" and len(tensor.get_shape()) > 1  # GPT-2's `attn.bias`, in bytes
        if dtype.startswith(_CODED) and not mask:
            found.append(f"{name} is {dtype}")
    return found


def _named_by_config(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # said where the config is read
    name = config.get("transformers_weights") if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


def _shards(spec: str, folder: Path, index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelLoadError(
            f"{spec}: {index.name} can't be read as an index of weight files ({type(error).__name__}: "
            f"{str(error)[:200]}); copy or download it again"
        ) from error
    return [
        index,
        *(_inside(spec, folder, name, index.name, suffix=(_SUFFIX,)) for name in sorted(names, key=str)),
    ]


def _inside(spec: str, folder: Path, name: object, by: str, *, suffix: tuple[str, ...]) -> Path:
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("/")
    if path.is_absolute() or ".." in path.parts or "\\" in str(name):
        raise ModelLoadError(
            f"{spec}: {by} names {name!r}, which isn't a file in {folder}; put all weight files there"
        )
    if not str(name).endswith(suffix):
        raise ModelLoadError(
            f"{spec}: {by} names {name!r}, which isn't a safetensors file and could run code when loaded; "
            "save the model as safetensors (model.save_pretrained does) and evaluate that"
        )
    file = folder / path
    if not there(spec, file):
        raise ModelLoadError(
            f"{spec}: {by} names {name!r}, which isn't in {folder}; copy or download it again"
        )
    return file


def there(spec: str, path: Path) -> bool:
    """Whether a file is there.

    Args:
        spec: The model as the user named it.
        path: The file.

    Raises:
        ModelLoadError: Something by its name is, but no file: a link to nowhere, a folder, a pipe.
    """
    if path.is_file():
        return True
    if path.is_symlink() and not path.exists():
        raise ModelLoadError(
            f"{spec}: {path.name} is a link to {os.readlink(path)}, which isn't there; copy or download "
            "it again"
        )
    if os.path.lexists(path):
        raise ModelLoadError(f"{spec}: {path.name} isn't a file; copy or download it again")
    return False


def some_of(names: list[str]) -> str:
    """The first of many names in a message, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
