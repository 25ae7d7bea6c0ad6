"""What the benchmark of lists measured, as plain data and as tables."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from nsa_kernels.bench.settings import DTYPES, length_name
from nsa_kernels.bench.tables import MIB, Sheet, to_text
from nsa_kernels.bench.timing import Timing

SCHEMA = "nsa-kernels-blocks/1"
TABLES = ("prefill", "decode", "masks", "tune")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSettings:
    """One benchmark of lists; heads and widths of a dense model of 8B parameters.

    Raises:
        ValueError: A value that can't be measured.
    """

    lengths: tuple[int, ...] = (32768, 65536)
    """Tokens of the methods' prompts and caches."""
    mask_lengths: tuple[int, ...] = (8192, 16384, 32768, 65536)
    """Tokens of the masks' sequences."""
    tables: tuple[str, ...] = ("prefill", "decode", "masks")
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    dtype: str = "bfloat16"
    densities: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    """Shares of all blocks that a block-sparse mask keeps."""
    block: int = 128
    """Queries and keys to a block of the masks' table."""
    window: int = 1024
    """Of the sliding mask."""
    batches: tuple[int, ...] = (1, 8)
    """Rows of decode."""
    seconds: float = 90.0
    """What may be spent in all: a case that would begin later is left out, with a note."""
    case_seconds: float = 0.3
    """About how long each contender is timed; at least three runs."""
    repeats: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the values."""
        unknown = [name for name in self.tables if name not in TABLES]
        if unknown or not self.tables:
            raise ValueError(f"tables must be out of {', '.join(TABLES)}, got {list(self.tables)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads: {self.heads} is no multiple of {self.kv_heads}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be out of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not all(0 < density <= 1 for density in self.densities):
            raise ValueError(f"densities must be above 0 and up to 1, got {list(self.densities)}")
        if self.block < 16 or self.block & (self.block - 1):
            raise ValueError(f"block must be a power of 2 from 16 on, got {self.block}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRow:
    """One contender in one situation."""

    table: str
    """prefill | decode | masks | tune."""
    length: int
    what: str
    """The method, or the mask."""
    by: str
    """The kernel."""
    time: Timing | None = None
    """Of the attention alone; None for a method that is only simulated."""
    choice: Timing | None = None
    """Of making the lists; None where there are none to make."""
    total: Timing | None = None
    """Of both, one after the other."""
    flops: float | None = None
    """4 x query-key pairs x heads x head_dim."""
    density: float | None = None
    """Pairs over N^2 (decode: over N)."""
    peak_bytes: int | None = None
    """At the peak beyond the inputs, lists and results included."""
    batch: int = 1
    note: str = ""

    @property
    def tflops(self) -> float | None:
        """Achieved by the attention alone, 10^12 operations a second."""
        return self.flops / self.time.median * 1e-9 if self.flops and self.time else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "tflops": self.tflops}


@dataclass(slots=True)
class BlockMeasurement:
    """A benchmark, filled as it runs."""

    settings: BlockSettings
    environment: dict[str, Any]
    rows: list[BlockRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def dumps(self) -> str:
        """The JSON file's text."""
        data = {
            "schema": SCHEMA,
            "environment": self.environment,
            "settings": asdict(self.settings),
            "rows": [row.to_json() for row in self.rows],
            "notes": self.notes,
        }
        return json.dumps(data, indent=1) + "\n"

    def dense(self, row: BlockRow) -> BlockRow | None:
        """The fastest dense attention of a row's situation."""
        found = [
            other
            for other in self.rows
            if (other.table, other.length, other.batch) == (row.table, row.length, row.batch)
            and other.what == "dense"
            and other.time
        ]
        return min(found, key=lambda other: other.time.median if other.time else 0.0, default=None)

    def text(self) -> str:
        """Everything, for a terminal."""
        e, s = self.environment, self.settings
        lines = [
            f"{e['device']}, torch {e['torch']}, triton {e['triton']}, CUDA {e['cuda']}",
            f"{s.heads} query heads, {s.kv_heads} KV heads, head dim {s.head_dim}, {s.dtype}, random data",
        ]
        for sheet in self.sheets():
            lines += ["", to_text(sheet)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def sheets(self) -> list[Sheet]:
        """A table for each that has rows."""
        made = [
            self._methods("prefill", "Methods by lists, forward of one prompt, ms", 1.0),
            self._methods("decode", "Methods by lists, one token a row in a CUDA graph, us", 1000.0),
            self._rates("masks", "Kernels by mask and length, forward"),
            self._rates("tune", "Launch configurations of the kernel over lists"),
        ]
        return [sheet for sheet in made if sheet.rows]

    def _methods(self, table: str, title: str, unit: float) -> Sheet:
        rows = []
        for row in self.rows:
            if row.table != table:
                continue
            dense = self.dense(row)
            whole = row.total or row.time
            ratio = dense.time.median / whole.median if dense and dense.time and whole else None
            rows.append(
                (
                    row.what,
                    row.by,
                    length_name(row.length) if row.length else "-",
                    str(row.batch),
                    _number(row.density, 1.0, 3),
                    _number(row.choice.median if row.choice else None, unit),
                    _number(row.time.median if row.time else None, unit),
                    _number(whole.median if whole else None, unit),
                    "quality only" if whole is None else _number(ratio, 1.0, 2),
                    _number(row.tflops, 1.0, 0),
                    "-" if row.peak_bytes is None else f"{row.peak_bytes / MIB:,.0f}",
                )
            )
        columns = (
            "", "by", "tokens", "rows", "density", "choice", "attention", "both", "dense / both", "TFLOP/s",
            "MiB",
        )  # fmt: skip
        return Sheet(title, columns, tuple(rows), words=2)

    def _rates(self, table: str, title: str) -> Sheet:
        rows = [
            (
                row.what,
                row.by,
                length_name(row.length),
                _number(row.density, 1.0, 3),
                _number(row.time.median if row.time else None),
                "-" if row.time is None else f"{row.time.low:.3f} - {row.time.high:.3f}",
                _number(row.tflops, 1.0, 0),
                "-" if row.peak_bytes is None else f"{row.peak_bytes / MIB:,.0f}",
            )
            for row in self.rows
            if row.table == table
        ]
        return Sheet(
            title, ("", "by", "tokens", "density", "ms", "10-90 %", "TFLOP/s", "MiB"), tuple(rows), 2
        )


def _number(value: float | None, unit: float = 1.0, digits: int = 3) -> str:
    return "-" if value is None else f"{value * unit:.{digits}f}"
