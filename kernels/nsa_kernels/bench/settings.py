"""What the kernel benchmark measures: shapes, parts, and how long."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch

from nsa_kernels.geometry import BlockGeometry

PARTS = ("fwd", "bwd", "decode", "stages")
PHIS = ("mean", "linear", "mlp")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One benchmark; the defaults are the paper's attention and the lengths of its figures.

    Raises:
        ValueError: A value that cannot be measured; the message says what is allowed.
    """

    lengths: tuple[int, ...] = (8192, 16384, 32768, 65536, 131072)
    """Tokens of the sequences of fwd, bwd and the stages."""
    tokens: int = 0
    """Tokens of their batches: as many sequences as fit, at least one; 0 = one."""
    decode_lengths: tuple[int, ...] = (8192, 65536, 131072)
    """Tokens in the caches of decode."""
    decode_batches: tuple[int, ...] = (1, 16)
    parts: tuple[str, ...] = PARTS
    heads: int = 64
    kv_heads: int = 4
    head_dim: int = 128
    value_dim: int = 128
    geometry: BlockGeometry = field(default_factory=BlockGeometry)
    phi: str = "mean"
    """Compression of keys and values: mean | linear | mlp."""
    phi_hidden: int = 256
    """Hidden units of phi = mlp."""
    shared_kv: bool = True
    """One K/V for all branches, as dense attention has it; else the window branch has its own."""
    dtype: str = "bfloat16"
    repeats: int = 20
    """Timed runs of each contender, fewer where one run is long (see `seconds`)."""
    seconds: float = 2.0
    """About how long a contender is timed; at least three runs."""
    backend: str = "triton"
    """Backend of the NSA side."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the values."""
        _one_of("parts", self.parts, PARTS)
        _one_of("phi", [self.phi], PHIS)
        _one_of("dtype", [self.dtype], DTYPES)
        counts = ("heads", "kv_heads", "head_dim", "value_dim", "phi_hidden", "repeats")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lengths", "decode_lengths", "decode_batches", "parts"):
            values = getattr(self, name)
            if not values or (name != "parts" and min(values) < 1):
                raise ValueError(f"{name} must be one or more positive numbers, got {list(values)}")
        if self.tokens < 0:
            raise ValueError(f"tokens must be 0 (one sequence) or more, got {self.tokens}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads: {self.heads} is no multiple of {self.kv_heads}")
        shortest = min(self.lengths + self.decode_lengths)
        if shortest < self.geometry.block:
            raise ValueError(f"lengths must be at least one block of {self.geometry.block}, got {shortest}")

    def batch(self, length: int) -> int:
        """Sequences of a length that are computed at once in fwd, bwd and the stages."""
        return max(1, self.tokens // length)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of all inputs."""
        return DTYPES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Settings:
        """The settings that `to_json` was made of, from a JSON file too."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        plain["geometry"] = BlockGeometry(**data["geometry"])
        return cls(**plain)


def parse_lengths(text: str) -> tuple[int, ...]:
    """Reads "8k,16k,100": token counts with commas, k = 1024, m = 1024 * 1024 (as everywhere else).

    Raises:
        ValueError: A word that is no length.
    """
    return _words(text, _length, "lengths such as 8k,64k or 100 (k = 1024)")


def parse_counts(text: str) -> tuple[int, ...]:
    """Reads "1,16".

    Raises:
        ValueError: A word that is no number.
    """
    return _words(text, int, "whole numbers such as 1,16")


def parse_names(text: str) -> tuple[str, ...]:
    """Reads "fwd,bwd"."""
    return _words(text, str, "names")


def length_name(tokens: int) -> str:
    """8192 -> "8k"; what is no multiple of 1024 stays a number."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def _length(word: str) -> int:
    match = re.fullmatch(r"([0-9]{1,20})([km]?)", word.lower())
    if match is None:
        raise ValueError(word)
    return int(match[1]) * {"": 1, "k": 1024, "m": 1024 * 1024}[match[2]]


def _words(text: str, read: Callable[[str], _T], expected: str) -> tuple[_T, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        return tuple(dict.fromkeys(read(word) for word in words))
    except ValueError:
        raise ValueError(f"expected {expected}, got {text!r}") from None


def _one_of(name: str, values: Iterable[str], allowed: Iterable[str]) -> None:
    for value in values:
        if value not in allowed:
            raise ValueError(f"{name} must be out of {', '.join(allowed)}, got {value!r}")
