"""What was measured, as plain data: the JSON file."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from nsa_kernels.bench.counts import Ceilings, Work
from nsa_kernels.bench.settings import Settings
from nsa_kernels.bench.timing import Timing

SCHEMA = "nsa-kernels-benchmark/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender in one situation."""

    part: str
    """fwd | bwd | fwd+bwd | decode graph | decode eager | stage fwd | stage bwd."""
    length: int
    batch: int
    contender: str
    """dense | nsa, or the stage."""
    variant: str
    """dense: SDPA's backend; nsa and stages: nsa_kernels' backend."""
    time: Timing | None = None
    """None: only the memory was measured."""
    work: Work | None = None
    floor_ms: float | None = None
    peak_bytes: int | None = None
    """Memory at the peak beyond the inputs; the results are in it."""

    @property
    def tflops(self) -> float | None:
        """Achieved 10^12 operations a second."""
        return self.work.flops / self.time.median * 1e-9 if self.work and self.time else None

    @property
    def tbs(self) -> float | None:
        """Achieved 10^12 bytes a second, counting each byte once."""
        return self.work.bytes / self.time.median * 1e-9 if self.work and self.time else None

    def to_json(self) -> dict[str, Any]:
        """Plain data, achieved rates included."""
        return {**asdict(self), "tflops": self.tflops, "tbs": self.tbs}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        """The row that `to_json` was made of."""
        plain = {name: data[name] for name in ("part", "length", "batch", "contender", "variant")}
        return cls(
            **plain,
            time=None if data["time"] is None else Timing(**data["time"]),
            work=None if data["work"] is None else Work(**data["work"]),
            floor_ms=data["floor_ms"],
            peak_bytes=data["peak_bytes"],
        )


@dataclass(slots=True)
class Measurement:
    """A benchmark: filled as it runs, so that a stop leaves what is done."""

    settings: Settings
    environment: dict[str, Any]
    ceilings: Ceilings = field(default_factory=Ceilings)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    def find(self, part: str, length: int, contender: str, batch: int = 1) -> list[Row]:
        """The timed rows of a situation, fastest first."""
        found = [
            row
            for row in self.rows
            if (row.part, row.length, row.contender, row.batch) == (part, length, contender, batch)
        ]
        return sorted(
            (row for row in found if row.time), key=lambda row: row.time.median if row.time else 0.0
        )

    def best(self, part: str, length: int, contender: str, batch: int = 1) -> Row | None:
        """The fastest that counts: dense forms that SDPA does not have itself ("packed") are only noted."""
        rows = self.find(part, length, contender, batch)
        return next((row for row in rows if "packed" not in row.variant), None)

    def ratio(self, part: str, length: int, batch: int = 1) -> float | None:
        """Time of the fastest dense attention over that of NSA."""
        dense, nsa = self.best(part, length, "dense", batch), self.best(part, length, "nsa", batch)
        if dense is None or nsa is None or dense.time is None or nsa.time is None:
            return None
        return dense.time.median / nsa.time.median

    def situations(self) -> list[tuple[str, int, int]]:
        """(part, length, batch) of everything but the stages, in the order measured."""
        found = [(row.part, row.length, row.batch) for row in self.rows if not row.part.startswith("stage")]
        return list(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        ratios = [
            {"part": part, "length": length, "batch": batch, "dense_over_nsa": ratio}
            for part, length, batch in self.situations()
            if (ratio := self.ratio(part, length, batch)) is not None
        ]
        return {
            "schema": SCHEMA,
            "complete": self.complete,
            "environment": self.environment,
            "settings": self.settings.to_json(),
            "ceilings": asdict(self.ceilings),
            "ratios": ratios,
            "rows": [row.to_json() for row in self.rows],
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measurement:
        """The measurement that `to_json` was made of.

        Raises:
            ValueError: The data has another schema.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"expected schema {SCHEMA}, got {found}")
        return cls(
            Settings.from_json(data["settings"]),
            data["environment"],
            Ceilings(**data["ceilings"]),
            [Row.from_json(row) for row in data["rows"]],
            list(data["notes"]),
            data["complete"],
        )

    def dumps(self) -> str:
        """The JSON file's text."""
        return json.dumps(self.to_json(), indent=1) + "\n"


def describe(device: torch.device, command: list[str]) -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    facts: dict[str, Any] = {
        "command": command,
        "torch": torch.__version__,
        "triton": triton_version,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "device": platform.processor() or platform.machine(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts
