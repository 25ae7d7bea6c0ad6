"""A measurement as tables: plain cells, printed by whoever has a screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nsa_kernels.bench.result import Measurement, Row
from nsa_kernels.bench.settings import length_name

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table. The first `words` columns are text, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def sheets(result: Measurement) -> list[Sheet]:
    """All tables that have rows: attention, memory, decode, stages."""
    made = [_attention(result), _memory(result), _decode(result), _stages(result)]
    return [sheet for sheet in made if sheet.rows]


def heading(result: Measurement) -> str:
    """Two lines: the machine, and what was measured."""
    e, s, g, c = result.environment, result.settings, result.settings.geometry, result.ceilings
    how = "measured in this run" if c.measured else "given"
    return (
        f"{e['device']}, torch {e['torch']}, triton {e['triton']}, CUDA {e['cuda']}; "
        f"ceilings {c.tflops:.0f} TFLOP/s, {c.tbs:.2f} TB/s ({how})\n"
        f"{s.heads} query heads, {s.kv_heads} KV heads, head dim {s.head_dim}/{s.value_dim}, {s.dtype}; "
        f"l {g.block}, d {g.stride}, l' {g.select_block}, n {g.select_count}, w {g.window}; phi {s.phi}, "
        f"{'one K/V for all branches' if s.shared_kv else 'K/V of its own for the window'}"
    )


def to_text(sheet: Sheet) -> str:
    """A table in fixed width."""
    lines = [sheet.columns, *sheet.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(sheet.columns))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < sheet.words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([sheet.title, line(sheet.columns), rule, *map(line, sheet.rows)])


def _attention(result: Measurement) -> Sheet:
    rows = []
    for part in ("fwd", "bwd", "fwd+bwd"):
        for length, batch in _shapes(result, part):
            dense, nsa = (result.best(part, length, name, batch) for name in ("dense", "nsa"))
            rows.append(
                (
                    part,
                    _shape(length, batch),
                    dense.variant if dense else "-",
                    *_times(dense),
                    _rate(dense),
                    *_times(nsa),
                    _rate(nsa),
                    _number(nsa.floor_ms if nsa else None),
                    _ratio(result.ratio(part, length, batch)),
                )
            )
    columns = (
        "", "tokens", "dense by", "dense ms", "10-90 %", "TFLOP/s", "NSA ms", "10-90 %", "TFLOP/s",
        "NSA floor ms", "dense / NSA",
    )  # fmt: skip
    return Sheet(f"Whole attention{_batch(result)}", columns, tuple(rows))


def _memory(result: Measurement) -> Sheet:
    rows = []
    for part in ("fwd", "fwd+bwd"):
        for length, batch in _shapes(result, part):
            dense, nsa = (result.best(part, length, name, batch) for name in ("dense", "nsa"))
            peaks = [row.peak_bytes if row else None for row in (dense, nsa)]
            if any(peak is not None for peak in peaks):
                cells = ["-" if peak is None else f"{peak / MIB:,.0f}" for peak in peaks]
                rows.append((part, _shape(length, batch), *cells))
    title = "Memory at the peak beyond the inputs, results included"
    return Sheet(title, ("", "tokens", "dense MiB", "NSA MiB"), tuple(rows))


def _decode(result: Measurement) -> Sheet:
    rows = []
    for part, length, batch in result.situations():
        if not part.startswith("decode"):
            continue
        dense, nsa = (result.best(part, length, name, batch) for name in ("dense", "nsa"))
        rows.append(
            (
                part.removeprefix("decode "),
                str(batch),
                length_name(length),
                dense.variant if dense else "-",
                *_times(dense, 1000),
                *_times(nsa, 1000),
                _number(nsa.floor_ms if nsa else None, 1000),
                _ratio(result.ratio(part, length, batch)),
            )
        )
    rows.sort(key=lambda cells: cells[0], reverse=True)
    columns = (
        "", "batch", "tokens", "dense by", "dense us", "10-90 %", "NSA us", "10-90 %", "NSA floor us",
        "dense / NSA",
    )  # fmt: skip
    return Sheet("Decode, one token for each row", columns, tuple(rows))


def _stages(result: Measurement) -> Sheet:
    rows = []
    for row in result.rows:
        if row.part.startswith("stage ") and row.time and row.floor_ms and row.work:
            c = result.ceilings
            bound = "arithmetic" if c.arithmetic_ms(row.work) >= c.bytes_ms(row.work) else "bytes"
            times = _times(row)
            cells = (
                row.part.removeprefix("stage "), row.contender, _shape(row.length, row.batch), *times,
                _rate(row), f"{row.tbs or 0:.2f}", _number(row.floor_ms), bound,
                f"{row.time.median / row.floor_ms:.1f}",
            )  # fmt: skip
            rows.append(cells)
    columns = (
        "",
        "stage",
        "tokens",
        "ms",
        "10-90 %",
        "TFLOP/s",
        "TB/s",
        "floor ms",
        "floor by",
        "ms / floor",
    )
    return Sheet(f"NSA's stages{_batch(result)}", columns, tuple(rows), words=2)


def _shapes(result: Measurement, part: str) -> list[tuple[int, int]]:
    """Lengths and batches of a part."""
    return [(length, batch) for found, length, batch in result.situations() if found == part]


def _shape(length: int, batch: int) -> str:
    """8k, or 4 x 8k."""
    return length_name(length) if batch == 1 else f"{batch} x {length_name(length)}"


def _batch(result: Measurement) -> str:
    return "" if result.settings.tokens else ", batch 1"


def _times(row: Row | None, factor: float = 1.0) -> tuple[str, str]:
    """Median and spread."""
    if row is None or row.time is None:
        return "-", "-"
    low, high = (_number(x, factor) for x in (row.time.low, row.time.high))
    return _number(row.time.median, factor), f"{low}-{high}"


def _number(value: float | None, factor: float = 1.0) -> str:
    """Three significant digits and more before the point."""
    if value is None:
        return "-"
    value *= factor
    digits = 3 if value < 1 else 2 if value < 10 else 1
    return f"{value:.{digits}f}"


def _rate(row: Row | None) -> str:
    return "-" if row is None or row.tflops is None else f"{row.tflops:.0f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
