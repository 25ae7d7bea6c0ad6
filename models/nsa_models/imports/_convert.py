"""Writing a foreign checkpoint as a folder of this project's."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from nsa_models.checkpoints import ModelLoadError, local_folder
from nsa_models.configuration import NSADecoderConfig
from nsa_models.fingerprints import TOKENIZER_FILES, fingerprint_of
from nsa_models.imports._checkpoint import READING, Imported, foreign_type, imported
from nsa_models.imports._format import Choices
from nsa_models.imports._registry import formats
from nsa_models.weight_files import INDEX, SINGLE, check_no_adapter, check_weight_files

RECORD = "conversion.json"
"""What a converted folder was made of; no part of its fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was written."""

    folder: Path
    config: NSADecoderConfig
    notes: tuple[str, ...]
    """What was decided that the source's files don't say."""
    tensors: int


def convert(
    source: str, destination: str | Path, choices: Choices | None = None, *, revision: str | None = None
) -> Conversion:
    """Write a checkpoint of another trainer as a folder that loads here and opens in transformers.

    The weights keep their dtype, but for those that a format scales, and go one file after another: memory
    holds one of them. The folder appears whole, or not at all.

    Args:
        source: A folder or a hub id.
        destination: A folder that isn't there yet, or is empty.
        choices: What the source's files don't say.
        revision: Branch, tag or commit of a hub repository.

    Raises:
        ModelLoadError: The source is of no known format, damaged, or can't be represented exactly; or the
            destination holds something.
    """
    folder = local_folder(source, revision=revision)
    target = Path(destination).expanduser()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ModelLoadError(f"{target} is there already, and not empty; name another folder")
    if foreign_type(folder) is None:
        raise ModelLoadError(
            f"{source}: its config.json names none of the formats that are converted (model_type "
            f"{', '.join(formats())}); what transformers or this project reads is evaluated as it is"
        )
    check_no_adapter(source, folder)
    chosen = choices or Choices()
    found = imported(source, folder, chosen)
    check_weight_files(source, folder, quantized=False)
    found.check()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        tensors = _write_weights(found, made)
        found.config.save_pretrained(made)
        _copy_small_files(folder, made)
        (made / RECORD).write_text(
            json.dumps(
                {
                    "model_type": found.format.model_type,
                    "source": source,
                    "revision": revision,
                    "fingerprint": fingerprint_of(source, revision=revision).total,
                    "reading": READING,
                    "choices": asdict(chosen),
                    "notes": list(found.notes),
                },
                indent=2,
            )
            + "\n",
            encoding="utf-8",
        )
        if target.exists():
            target.rmdir()
        made.rename(target)
    return Conversion(folder=target, config=found.config, notes=found.notes, tensors=tensors)


def _write_weights(found: Imported, folder: Path) -> int:
    """The weights under their names here, cut into files as the source is; returns their number."""
    from safetensors.torch import save_file

    files = found.files()
    names = [SINGLE] if len(files) == 1 else [_shard(i + 1, len(files)) for i in range(len(files))]
    places: dict[str, str] = {}
    size = 0
    for file, name in zip(files, names, strict=True):
        tensors = dict(found.tensors(file))
        _check_finite(found.spec, tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return len(places)


def _shard(number: int, total: int) -> str:
    stem, _, suffix = SINGLE.rpartition(".")
    return f"{stem}-{number:05d}-of-{total:05d}.{suffix}"


def _check_finite(spec: str, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelLoadError(
                f"{spec}: NaN or infinite weights in {name}; scores from it would mean nothing"
            )


def _copy_small_files(source: Path, target: Path) -> None:
    """The tokenizer's files, and how text is generated by default."""
    for path in sorted(path for path in (*source.glob("*"), *source.glob("*/*")) if path.is_file()):
        name = path.relative_to(source).as_posix()
        patterns = [
            p for p in ("generation_config.json", *TOKENIZER_FILES) if p.count("/") == name.count("/")
        ]
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
