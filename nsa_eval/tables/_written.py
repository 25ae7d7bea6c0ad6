"""A filled table as text: Markdown, LaTeX (booktabs), CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from nsa_eval._markup import csv_cell, md, printable, tex, tex_number
from nsa_eval.tables._fill import FilledCell, FilledRow, FilledTable

Format = Literal["md", "tex", "csv"]
FORMATS: tuple[Format, ...] = ("md", "tex", "csv")
_CSV_COLUMNS = (
    *("row", "source", "group", "column", "metric", "value", "low", "high", "n"),
    *("protocol", "data", "truncation"),
)


def written_table(table: FilledTable, format: Format) -> str:
    """Write a table.

    Args:
        table: The table.
        format: "md" for a GitHub table, "tex" for a booktabs tabular, "csv" for a line per figure at full
            precision.
    """
    match format:
        case "md":
            return _markdown(table)
        case "tex":
            return _latex(table)
        case "csv":
            return _csv(table)


def write_table(table: FilledTable, folder: Path) -> list[Path]:
    """Write a table in every format.

    Args:
        table: The table.
        folder: Where; made if it isn't there.

    Returns:
        Its files.
    """
    from nsa_eval.rundir import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{table.name}.{ending}" for ending in FORMATS]
    for file, ending in zip(files, FORMATS, strict=True):
        write_atomically(file, written_table(table, ending))
    return files


def _note(table: FilledTable) -> str:
    """What the reader of a table has to know of its figures."""
    scores = f"Brackets: {table.confidence * 100:g} % intervals. " if table.intervals else ""
    reported = (
        "Reported figures are as their source prints them, not measured here. " if table.reported else ""
    )
    return f"{scores}{reported}n: documents."


def _markdown(table: FilledTable) -> str:
    titles = [f"{column.group}: {column.title}" if column.group else column.title for column in table.columns]
    out = [f"**{md(table.title)}**", "", f"| model | {' | '.join(md(title) for title in titles)} |"]
    out.append("|:---|" + "---:|" * len(titles))
    for row in table.own:
        out.append(_md_row(row.name, [f"{text} {interval}".strip() for text, interval in _texts(table, row)]))
    for source, rows in table.reported:
        for row in rows:
            name = f"{row.name} (reported: {source})"
            out.append(_md_row(name, [text for text, _ in _texts(table, row)]))
    out.append(_md_row("n", [column.n for column in table.columns]))
    out += ["", md(_note(table)), "", "| column | metric | protocol | data | truncation | n |"]
    out.append("|:---|:---|:---|:---|:---|---:|")
    for column, title in zip(table.columns, titles, strict=True):
        origin = column.origin
        out.append(_md_row(title, [column.metric, origin.protocol, origin.data, origin.truncation, column.n]))
    return "\n".join(out) + "\n"


def _md_row(name: str, cells: list[str]) -> str:
    return f"| {md(name)} | {' | '.join(md(cell) for cell in cells)} |"


def _texts(table: FilledTable, row: FilledRow) -> Iterator[tuple[str, str]]:
    return ((table.text(cell), table.interval(cell)) for cell in row.cells)


def _latex(table: FilledTable) -> str:
    width = len(table.columns) + 1
    out = ["% Needs \\usepackage{booktabs}.", f"% {printable(table.title)}", f"% {_note(table)}"]
    for column in table.columns:
        parts = (column.metric, column.origin.protocol, column.origin.data, column.origin.truncation)
        about = "; ".join(part for part in (*parts, f"n = {column.n}" if column.n else "") if part)
        out.append(f"% {tex(column.title)}: {tex(about)}")
    out += [f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}", "\\toprule"]
    if table.groups:
        spans, rules, at = [], [], 2
        for group, count in table.groups:
            spans.append(f"\\multicolumn{{{count}}}{{c}}{{{tex(group)}}}")
            rules.append(f"\\cmidrule(lr){{{at}-{at + count - 1}}}" if group else "")
            at += count
        out += [f"& {' & '.join(spans)} \\\\", "".join(rules)]
    out += [f"& {' & '.join(tex(column.title) for column in table.columns)} \\\\", "\\midrule"]
    out += [_tex_row(table, row) for row in table.own]
    for source, rows in table.reported:
        out += ["\\midrule", f"\\multicolumn{{{width}}}{{l}}{{\\emph{{Reported: {tex(source)}}}}} \\\\"]
        out += [_tex_row(table, row) for row in rows]
    out += ["\\midrule", f"$n$ & {' & '.join(tex(column.n) for column in table.columns)} \\\\"]
    return "\n".join([*out, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _tex_row(table: FilledTable, row: FilledRow) -> str:
    cells = []
    for cell in row.cells:
        interval = table.interval(cell)
        small = f" {{\\scriptsize {tex_number(interval)}}}" if interval else ""
        cells.append(f"{'--' if cell is None else tex_number(table.text(cell))}{small}")
    # In braces, for names that begin like LaTeX's optional argument.
    return f"{{{tex(row.name)}}} & {' & '.join(cells)} \\\\"


def _csv(table: FilledTable) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            origin = (
                () if row.source else (column.origin.protocol, column.origin.data, column.origin.truncation)
            )
            values = [
                row.name,
                row.source,
                column.group,
                column.title,
                column.metric,
                *_figures(cell),
                *origin,
            ]
            writer.writerow([csv_cell(value) for value in values] + [""] * (len(_CSV_COLUMNS) - len(values)))
    return out.getvalue()


def _figures(cell: FilledCell | None) -> list[float | int | None]:
    # 0.07 * 100 is 7.000000000000001: ten decimals are more than any score has.
    if cell is None:
        return [None] * 4
    ends = (None if end is None else round(end, 10) for end in (cell.low, cell.high))
    return [round(cell.value, 10), *ends, cell.n]
