"""The fingerprint of a checkpoint: everything in its folder that changes what it answers."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path

from nsa_models.checkpoints import local_folder
from nsa_models.weight_files import there, weight_files

# Files that change what a model answers; a card or a log beside them doesn't.
_CONFIG = ("config.json", "generation_config.json")
_TEMPLATES = "additional_chat_templates"  # where transformers keeps those with a name
_CODE = ("*.py",)
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    f"{_TEMPLATES}/*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
)
_WEIGHTS = ("*.safetensors",)
_READ_SIZE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Hashes of a checkpoint, 64 hexadecimal digits each."""

    total: str
    """Of all that follows: two models with the same one answer alike."""
    weights: str
    config: str
    tokenizer: str
    code: str

    @property
    def parts(self) -> dict[str, str]:
        """The hash of each part by its name, as results record them."""
        return {name: value for name, value in asdict(self).items() if name != "total"}

    def changed(self, recorded: Mapping[str, str]) -> list[str]:
        """Which parts aren't what was recorded of them."""
        return [name for name, value in self.parts.items() if recorded.get(name, value) != value]


def fingerprint(spec: str, *, revision: str | None = None) -> str:
    """SHA-256 over a checkpoint's configuration, tokenizer and weight files: two models that answer alike.

    Returns:
        64 hexadecimal digits.

    Raises:
        ModelLoadError: As `fingerprint_of`.
    """
    return fingerprint_of(spec, revision=revision).total


def fingerprint_of(spec: str, *, revision: str | None = None) -> Fingerprint:
    """The hashes of a checkpoint as a whole and of its parts.

    The hashes of weight files are remembered by path, size, times of change and place on the disk in the
    user's cache folder, so that a large model is read once. All other files are small and read each time.

    Raises:
        ModelLoadError: As `local_folder` and `weight_files`.
    """
    from nsa_models.imports import READING, foreign_type  # which hashes what it converts

    folder = local_folder(spec, revision=revision)

    entries = [path for place in (folder, folder / _TEMPLATES) if place.is_dir() for path in place.iterdir()]

    def found(patterns: tuple[str, ...]) -> set[Path]:
        names = {path.relative_to(folder) for path in entries if not path.is_dir()}
        named = {name for name in names if any(fnmatchcase(name.as_posix(), p) for p in patterns)}
        return {name for name in named if there(spec, folder / name)}

    groups = {
        "weights": {path.relative_to(folder) for path in weight_files(spec, folder)} | found(_WEIGHTS),
        "config": found(_CONFIG),
        "code": found(_CODE),
    }
    groups["tokenizer"] = found(TOKENIZER_FILES) - set().union(*groups.values())
    with _HashMemory() as memory:
        hashes = {
            name: {
                path.as_posix(): memory.hash(folder / path)
                if path.suffix == ".safetensors"
                else _hash(folder / path)
                for path in paths
            }
            for name, paths in groups.items()
        }
    foreign = foreign_type(folder)
    if foreign is not None:  # what it is read as is our code
        hashes["code"][f"import {foreign}"] = sha256(str(READING).encode()).hexdigest()
    everything = {path: digest for group in hashes.values() for path, digest in group.items()}
    return Fingerprint(
        total=_together(everything), **{name: _together(group) for name, group in hashes.items()}
    )


def _together(hashes: Mapping[str, str]) -> str:
    total = sha256()
    for name in sorted(hashes):
        total.update(f"{name}\0{hashes[name]}\n".encode())
    return total.hexdigest()


def _hash(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_SIZE):
            digest.update(piece)
    return digest.hexdigest()


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
        # A file written over in place can get its old time of change back, but not its status's (ctime).
        key = ":".join(
            str(part)
            for part in (
                path.resolve(),
                stat.st_size,
                stat.st_mtime_ns,
                stat.st_ctime_ns,
                stat.st_dev,
                stat.st_ino,
            )
        )
        if key not in self._known:
            self._known[key] = _hash(path)
            self._changed = True
        return self._known[key]
