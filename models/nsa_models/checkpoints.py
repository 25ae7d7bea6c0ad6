"""Where a checkpoint is: the bundled zoo, a folder, or a hub repository; and its fingerprint.

Imports nothing of the package and not torch: `nsa-eval ls models` runs this file alone.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

ZOO_PREFIX = "zoo:"
_ZOO = Path(__file__).parent / "zoo"
_CONFIG = "config.json"
# What an evaluation needs of a repository; never pickles.
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "tokenizer*", "*.py")
_WEIGHTS = "*.safetensors"
# Files that change what a model answers; a card or a log beside them doesn't.
_FINGERPRINTED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "*.py",
)
_READ_SIZE = 1 << 22


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


def fingerprint(spec: str, *, revision: str | None = None) -> str:
    """SHA-256 over a checkpoint's configuration, tokenizer and weight files: two models that answer alike.

    File hashes are remembered by path, size and modification time in the user's cache folder, so that a
    large model is read once.

    Returns:
        64 hexadecimal digits.

    Raises:
        ModelLoadError: As `local_folder`.
    """
    folder = local_folder(spec, revision=revision)
    names = {
        path for pattern in (*_FINGERPRINTED, _WEIGHTS) for path in folder.glob(pattern) if path.is_file()
    }
    total = sha256()
    with _HashMemory() as memory:
        for path in sorted(names, key=lambda path: path.name):
            total.update(f"{path.name}\0{memory.hash(path)}\n".encode())
    return total.hexdigest()


class _HashMemory:
    """Hashes of files that were read before."""

    def __init__(self) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self._file = Path(cache) / "nsa-eval" / "hashes.json"
        self._known: dict[str, str] = {}
        self._changed = False

    def __enter__(self) -> _HashMemory:
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(self._file.read_text(encoding="utf-8"))
            self._known = known if isinstance(known, dict) else {}
        return self

    def __exit__(self, *_: object) -> None:
        if not self._changed:
            return
        with contextlib.suppress(OSError):  # a home that can't be written to costs time, not correctness
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(self._known), encoding="utf-8")
            partial.replace(self._file)

    def hash(self, path: Path) -> str:
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in self._known:
            digest = sha256()
            with path.open("rb") as file:
                while piece := file.read(_READ_SIZE):
                    digest.update(piece)
            self._known[key] = digest.hexdigest()
            self._changed = True
        return self._known[key]


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
