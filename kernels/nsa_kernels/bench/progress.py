"""One line for each new measurement, and the JSON file as far as it goes."""

from __future__ import annotations

import sys
from pathlib import Path

from nsa_kernels.bench.result import Measurement
from nsa_kernels.bench.settings import length_name


class Progress:
    """Shows what is new on standard error and keeps the file up to date: a stop loses nothing."""

    def __init__(self, output: Path | None = None) -> None:
        """Starts with nothing shown."""
        self._output = output
        self._rows = self._notes = 0

    def __call__(self, result: Measurement) -> None:
        """Shows and writes."""
        for row in result.rows[self._rows :]:
            rows = f" batch {row.batch}" if row.batch > 1 else ""
            ms = f"{row.time.median:.4f} ms" if row.time else "-"
            name = f"{row.part} {length_name(row.length)}{rows} {row.contender} ({row.variant})"
            print(f"{name}: {ms}", file=sys.stderr, flush=True)
        for note in result.notes[self._notes :]:
            print(f"note: {note}", file=sys.stderr, flush=True)
        self._rows, self._notes = len(result.rows), len(result.notes)
        if self._output is not None:
            write_file(self._output, result.dumps())


def write_file(path: Path, text: str) -> None:
    """Replaces a file as a whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
