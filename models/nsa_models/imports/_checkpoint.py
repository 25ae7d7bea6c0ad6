"""A checkpoint of another format, read as this decoder's: config, names, tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from nsa_models.checkpoints import ModelLoadError
from nsa_models.configuration import NSADecoderConfig
from nsa_models.imports._format import Choices, Fields, Format
from nsa_models.imports._registry import formats
from nsa_models.modeling import NSADecoderForCausalLM
from nsa_models.weight_files import some_of, weight_files

READING = 1
"""Version of what foreign checkpoints are read as, and part of their fingerprint: raised when the same files
may answer otherwise than before."""
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A checkpoint as this decoder has it."""

    spec: str
    """The model as the user named it."""
    folder: Path
    format: Format
    config: NSADecoderConfig
    notes: tuple[str, ...]
    changes: Mapping[str, Callable[[Tensor], Tensor]]
    untied: bool
    """See `Meaning.untied`."""

    def check(self) -> None:
        """Hold the names and shapes in the weight files to those of the decoder.

        Raises:
            ModelLoadError: Tensors of another architecture, missing ones, or ones of another shape.
        """
        found: Shapes = {}
        for name, shape in self._shapes().items():
            own = self._renamed(name)
            if own is not None:
                changed = self._changed(own, torch.empty(shape, device="meta"))
                found[own] = tuple(changed.shape)
        if self.untied and _EMBEDDING in found:
            found[_HEAD] = found[_EMBEDDING]
        layers = {int(name.split(".")[2]) for name in found if name.startswith("model.layers.")}
        said = self.config.num_hidden_layers
        if len(layers) != said or max(layers) != said - 1:
            raise self._error(
                f"config.json says num_hidden_layers {said}, but the weight files hold tensors of "
                f"{len(layers)} layers"
            )
        try:
            with torch.device("meta"):
                decoder = NSADecoderForCausalLM(self.config)
        except (ValueError, KeyError) as error:
            raise self._error(f"config.json means no decoder of this project: {error}") from error
        wanted = {name: tuple(weight.shape) for name, weight in decoder.state_dict().items()}
        if self.config.tie_word_embeddings:
            wanted.pop(_HEAD)
            found.pop(_HEAD, None)
        missing, strange = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        if missing or strange:
            lack = [f"lack {some_of(missing)}"] if missing else []
            more = [f"hold {some_of(strange)}, which such a config doesn't have"] if strange else []
            raise self._error(f"the weight files {' and '.join((*lack, *more))} (names as in this decoder)")
        odd = [
            f"{n} is {list(found[n])}, not {list(wanted[n])}" for n in sorted(wanted) if found[n] != wanted[n]
        ]
        if odd:
            raise self._error(f"weights of another shape than config.json says: {some_of(odd)}")

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors under their names here, in the dtypes of the files.

        Raises:
            ModelLoadError: As `check`, and a head that differs from the embeddings that it is said to be.
        """
        self.check()
        return {name: tensor for file in self.files() for name, tensor in self.tensors(file)}

    def files(self) -> list[Path]:
        """The weight files."""
        return [path for path in weight_files(self.spec, self.folder) if path.suffix == ".safetensors"]

    def tensors(self, file: Path) -> Iterator[tuple[str, Tensor]]:
        """Those of one file that this decoder keeps, under their names here.

        Raises:
            ModelLoadError: A tensor that the format doesn't have, or a tied head that isn't the embeddings.
        """
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                own = self._renamed(name)
                if own is None:
                    continue
                tensor = opened.get_tensor(name)
                if own == _HEAD and (self.untied or self.config.tie_word_embeddings):
                    self._check_tied(tensor)
                    continue
                yield own, self._changed(own, tensor).contiguous()
                if own == _EMBEDDING and self.untied:
                    yield _HEAD, self._changed(_HEAD, tensor).contiguous()

    def _check_tied(self, head: Tensor) -> None:
        from safetensors import safe_open

        for file in self.files():
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    if self._renamed(name) == _EMBEDDING and not torch.equal(opened.get_tensor(name), head):
                        raise self._error(
                            "config.json says tie_word_embeddings, but lm_head.weight isn't the embeddings; "
                            "say tie_word_embeddings: false if the head is to count"
                        )

    def _shapes(self) -> Shapes:
        return _shapes(self.files())

    def _renamed(self, name: str) -> str | None:
        try:
            return self.format.renamed(name)
        except KeyError:
            raise self._error(
                f"the weight files hold {name}, which a model of model_type {self.format.model_type!r} "
                "doesn't have; what it does can't be told"
            ) from None

    def _changed(self, name: str, tensor: Tensor) -> Tensor:
        for end, change in self.changes.items():
            if name.endswith(end):
                return change(tensor)
        return tensor

    def _error(self, why: str) -> ModelLoadError:
        return ModelLoadError(f"{self.spec}: {why}")


def foreign_type(folder: Path, *, trust_remote_code: bool = False) -> str | None:
    """The format of a checkpoint, or None for one that transformers or its own code reads.

    Args:
        folder: A checkpoint's.
        trust_remote_code: Whether code that comes with it may run: where there is some, it reads it then.
    """
    raw = _raw(folder)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in formats() or (trust_remote_code and raw.get("auto_map")):
        return None
    return kind


def imported(spec: str, folder: Path, choices: Choices | None = None) -> Imported:
    """Read a checkpoint of another format, as far as its config and the headers of its weights tell.

    Args:
        spec: The model as the user named it.
        folder: Its folder; `foreign_type` says that it is of a known format.
        choices: What its files don't say.

    Raises:
        ModelLoadError: It can't be represented exactly, or its config.json contradicts itself.
    """
    raw = _raw(folder)
    chosen = formats()[raw["model_type"]]
    fields = Fields(spec, raw)
    meaning = chosen.read(fields, _readable_shapes(spec, folder), choices or Choices())
    fields.check_all_read()
    try:
        config = NSADecoderConfig(
            **meaning.fields,
            architectures=[NSADecoderForCausalLM.__name__],
            dtype=raw.get("dtype", raw.get("torch_dtype")),
        )
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise ModelLoadError(f"{spec}: config.json means no decoder of this project: {said}") from error
    config._name_or_path = str(folder)
    return Imported(
        spec=spec,
        folder=folder,
        format=chosen,
        config=config,
        notes=meaning.notes,
        changes=meaning.changes,
        untied=meaning.untied,
    )


def unread_notes(spec: str, folder: Path) -> tuple[str, ...]:
    """What a checkpoint's weights hold that only a sparse method reads.

    Args:
        spec: The model as the user named it.
        folder: Its folder.
    """
    if not any(name.endswith(".self_attn.delta.weight") for name in _readable_shapes(spec, folder)):
        return ()
    return (
        "its weights hold self_attn.delta of NOSA, which dense attention leaves unread: what was trained is "
        f"the method nosa:4096,weights={folder}",
    )


def _raw(folder: Path) -> dict[str, Any]:
    """config.json, or nothing where it can't be read: that is said where it is loaded."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _readable_shapes(spec: str, folder: Path) -> Shapes:
    """Shapes of all tensors, or none where the weights aren't there or are damaged: loading says that."""
    from safetensors import SafetensorError

    try:
        return _shapes([path for path in weight_files(spec, folder) if path.suffix == ".safetensors"])
    except (ModelLoadError, OSError, SafetensorError):
        return {}


def _shapes(files: list[Path]) -> Shapes:
    from safetensors import safe_open

    shapes: Shapes = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes
