"""Where a checkpoint is: the bundled zoo, a folder, or a hub repository.

Imports nothing of the package and not torch: `nsa-eval ls models` runs this file alone.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

ZOO_PREFIX = "zoo:"
_ZOO = Path(__file__).parent / "zoo"
_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
"""Beside or in place of a model's own files: weights that peft would put on top of it."""
# What an evaluation needs of a repository; never pickles.
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "tokenizer*", "*.py")
_WEIGHTS = "*.safetensors"


class ModelLoadError(ValueError):
    """A checkpoint that can't be evaluated; the message says what was found and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooEntry:
    """A bundled checkpoint."""

    name: str
    path: Path
    attention: str
    """"nsa" or "full"."""
    parameters: int
    max_length: int
    """Longest context it was trained on, tokens."""
    description: str


def zoo() -> list[ZooEntry]:
    """The bundled checkpoints, by name."""
    entries = []
    for folder in sorted(path.parent for path in _ZOO.glob(f"*/{_CONFIG}")):
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        card = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else ""
        entries.append(
            ZooEntry(
                name=folder.name,
                path=folder,
                attention=config["attention"],
                parameters=_count_parameters(folder),
                max_length=config["max_position_embeddings"],
                description=_first_paragraph(card),
            )
        )
    return entries


def resolve(spec: str) -> str:
    """Turn a model's name into what transformers' from_pretrained takes.

    Args:
        spec: "zoo:NAME" (bundled), a folder, or a hub id.

    Returns:
        The folder of a bundled or local checkpoint; a hub id as it is.

    Raises:
        ModelLoadError: No such bundled name, or a folder without config.json.
    """
    if spec.startswith(ZOO_PREFIX):
        name = spec.removeprefix(ZOO_PREFIX)
        folder = _ZOO / name
        if not name or not os.path.isfile(folder / _CONFIG):
            known = ", ".join(f"{ZOO_PREFIX}{path.parent.name}" for path in sorted(_ZOO.glob(f"*/{_CONFIG}")))
            raise ModelLoadError(f"{spec}: no such bundled model; there are {known or 'none'}")
        return str(folder)
    path = Path(os.path.expanduser(spec))  # leaves an unknown ~user as it is, where Path's own raises
    if os.path.isdir(path):  # False, where Path's own raises, for a name no file system takes
        if not (path / _CONFIG).is_file():
            if (path / ADAPTER_CONFIG).is_file():
                raise ModelLoadError(
                    f"{spec}: the folder holds an adapter ({ADAPTER_CONFIG}) without its base model; merge "
                    "the two (peft's merge_and_unload, then save_pretrained) and evaluate that"
                )
            raise ModelLoadError(
                f"{spec}: the folder has no {_CONFIG}, so it isn't a transformers checkpoint"
            )
        return str(path)
    if os.path.isfile(path):
        raise ModelLoadError(f"{spec}: give the checkpoint's folder, not a file in it")
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise ModelLoadError(f"{spec}: no such folder")
    return spec


def local_folder(spec: str, *, revision: str | None = None, weights: bool = True) -> Path:
    """The folder that holds a checkpoint's files, downloaded from the hub when it isn't there yet.

    Args:
        spec: As in `resolve`.
        revision: Branch, tag or commit of a hub repository.
        weights: Also fetch the safetensors; False = configuration and tokenizer only.

    Raises:
        ModelLoadError: `resolve`'s reasons, or the hub can't be reached or has no such repository.
    """
    resolved = resolve(spec)
    if os.path.isdir(resolved):
        return Path(resolved)
    from huggingface_hub import snapshot_download

    patterns = [*_SMALL_FILES, _WEIGHTS] if weights else list(_SMALL_FILES)
    try:
        return Path(snapshot_download(resolved, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client has no common base for offline, missing, gated and timed out
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(
            f"{spec}: no such folder here, and it can't be had from the hub ({reason}); "
            f"give a folder, a hub id, or a bundled model ({ZOO_PREFIX}NAME, see `nsa-eval ls models`)"
        ) from error


def _count_parameters(folder: Path) -> int:
    from safetensors import safe_open

    count = 0
    for path in folder.glob(_WEIGHTS):
        with safe_open(path, framework="np") as file:  # "pt" would import torch, to read shapes
            for name in file.keys():  # noqa: SIM118 - not a dict
                size = 1
                for extent in file.get_slice(name).get_shape():
                    size *= extent
                count += size
    return count


def _first_paragraph(card: str) -> str:
    """First paragraph of a model card after its YAML header and title."""
    body = card.split("---", 2)[-1] if card.startswith("---") else card
    for paragraph in body.split("\n\n"):
        text = " ".join(paragraph.split())
        if text and not text.startswith("#"):
            return text
    return ""
