"""Methods with weights of their own: read from safetensors beside or inside of a checkpoint, and hashed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from nsa_models.methods._base import Method, MethodError


class WeightsError(MethodError):
    """Weights of a method that aren't for its model; some are looked at only as a layer needs them."""


_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)")


@dataclass(frozen=True, kw_only=True)
class Weighted(Method):
    """A method whose choice has weights; one with a budget is `Budgeted` besides.

    A stored response depends on their contents, and not on where they lie: records and labels carry a hash.

    Attributes:
        weights: A folder of safetensors files, or one such file.
    """

    marks: ClassVar[tuple[str, ...]]
    """What the names of the method's tensors hold, each name one of them."""

    weights: str = ""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: No weights are named, there are none, or their files hold none of this method.
        """
        super().__post_init__()
        if not self.weights:
            self.refuse("weights", "must name the folder or the safetensors file that holds its weights")
        if not self._files:
            pickles = any(Path(self.weights).expanduser().glob("*.pth"))
            self.refuse(
                "weights",
                "must be a safetensors file or a folder of them"
                + (" (pickles aren't read; docs/trained.md says how to convert one)" if pickles else ""),
            )
        if not self.tensors():
            self.refuse("weights", f"must hold tensors named like {' or '.join(self.marks)}, and holds none")

    def tensors(self) -> Mapping[str, Tensor]:
        """The method's tensors by name, on the CPU."""
        return self._read[0]

    @property
    def digest(self) -> str:
        """SHA-256 of the tensors' names, shapes and contents."""
        return self._read[1]

    @property
    def label(self) -> str:
        """As for every method, with the start of the hash for the weights."""
        return super().label.replace(f"weights={self.weights}", f"weights={self.digest[:8]}")

    def describe(self) -> dict[str, Any]:
        """As for every method, with the hash for the weights."""
        said = super().describe()
        return {**said, "parameters": {**said["parameters"], "weights": f"sha256:{self.digest}"}}

    @property
    def _files(self) -> list[Path]:
        path = Path(self.weights).expanduser()
        found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        return [file for file in found if file.suffix == ".safetensors" and file.is_file()]

    @cached_property
    def _read(self) -> tuple[Mapping[str, Tensor], str]:
        from safetensors import safe_open

        found: dict[str, Tensor] = {}
        for file in self._files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    if any(mark in name for mark in self.marks):
                        found[name] = opened.get_tensor(name).contiguous()
        digest = sha256()
        for name in sorted(found):
            tensor = found[name]
            digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
        return MappingProxyType(found), digest.hexdigest()

    def by_layer(self) -> dict[int, dict[str, Tensor]]:
        """The tensors of each layer, by what stands behind its number in their names.

        Raises:
            WeightsError: A name without a layer.
        """
        found: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.tensors().items():
            inside = _LAYER.search(name)
            if inside is None:
                raise WeightsError(f"{self.name}: {name} in {self.weights} names no layer (layers.N.)")
            found.setdefault(int(inside[1]), {})[inside[2]] = tensor
        return found
