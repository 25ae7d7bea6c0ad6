"""The comparison as text: Markdown, LaTeX (booktabs), CSV."""

import csv
import io

from nsa_eval._markup import csv_cell, md, printable, tex, tex_number
from nsa_eval.comparison._format import Line, legend, lines, verdict_text, verdict_words
from nsa_eval.comparison._types import Comparison, Row
from nsa_eval.comparison.intervals import Interval
from nsa_eval.results import Origin

_CSV_COLUMNS = (
    *("task", "metric", "filter", "length", "baseline", "candidate", "n", "samples", "unit"),
    *("baseline_mean", "baseline_low", "baseline_high", "candidate_mean", "candidate_low", "candidate_high"),
    *("difference", "low", "high", "interval", "bootstrap_low", "bootstrap_high"),
    *("wins", "losses", "test", "p", "p_adjusted", "family", "family_name"),
    *("minimum_detectable", "verdict", "depth", "differs_on_purpose", "protocol", "data", "truncation"),
)


def to_markdown(comparison: Comparison, *, lengths: bool) -> str:
    """A GitHub table with the notes and the method under it."""
    header, aligned = _header(comparison), _alignment(comparison)
    rows = ["| " + " | ".join(md(name) for name in header) + " |"]
    rows.append("|" + "|".join(":---" if side == "l" else "---:" for side in aligned) + "|")
    for line in lines(comparison, lengths=lengths):
        cells = [md(cell) for cell in _cells(comparison, line)]
        cells[0] = "&nbsp;&nbsp;" * line.indent + ("at " if line.sub else "") + cells[0]
        rows.append("| " + " | ".join([*cells, md(verdict_text(line.row))]) + " |")
    remarks = [f"- {md(text)}" for text in (*comparison.notes, *comparison.method)]
    return "\n".join([*rows, "", md(legend(comparison)), "", *_origins(comparison), *remarks]) + "\n"


def _origins(comparison: Comparison) -> list[str]:
    """Where each task's scores come from, as a table of its own: in the first one a row would be too long."""
    if not comparison.origins:
        return []
    rows = ["| task | protocol | data | truncation | n |", "|:---|:---|:---|:---|---:|"]
    counts = {row.task: row.n for row in comparison.rows}
    for task, origin in comparison.origins.items():
        cells = (task, origin.protocol, origin.data, origin.truncation, str(counts.get(task, "")))
        rows.append("| " + " | ".join(md(cell) for cell in cells) + " |")
    return [*rows, ""]


def to_latex(comparison: Comparison, *, lengths: bool) -> str:
    """A booktabs tabular; legend and notes stand in it as comments."""
    aligned = _alignment(comparison)
    out = ["% Needs \\usepackage{booktabs}.", f"% {printable(legend(comparison))}"]
    out += [f"% {printable(note)}" for note in comparison.notes]
    for task, origin in comparison.origins.items():
        parts = (origin.protocol or "no protocol named", origin.data, origin.truncation)
        out.append(f"% {tex(task)}: {tex('; '.join(parts))}")
    out += [f"\\begin{{tabular}}{{{''.join(aligned)}}}", "\\toprule"]
    out += [" & ".join(tex(name) for name in _header(comparison)) + r" \\", r"\midrule"]
    for line in lines(comparison, lengths=lengths):
        cells = [*_cells(comparison, line), verdict_words(line.row)]
        cells = [tex(c) if side == "l" else tex_number(c) for c, side in zip(cells, aligned, strict=True)]
        cells[0] = r"\quad " * line.indent + cells[0]
        out.append(" & ".join(cells) + r" \\")
    if comparison.allowed:
        columns = len(_header(comparison))
        out += [r"\midrule", f"\\multicolumn{{{columns}}}{{l}}{{Although {tex(comparison.meant)}}} \\\\"]
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Every row and sub-row at full precision: in points of 100 or raw, as the column `unit` says."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for line in lines(comparison, lengths=True):
        origin = comparison.origins.get(line.row.task, Origin())
        values = [*_csv_values(line.row), "; ".join(comparison.allowed)]
        values += [origin.protocol, origin.data, origin.truncation]
        writer.writerow([csv_cell(value) for value in values])
    return out.getvalue()


def _header(comparison: Comparison) -> list[str]:
    several = len(comparison.candidates) > 1
    first = ["candidate", "n", "score"] if several else ["n", comparison.candidates[0]]
    middle = [comparison.baseline, "difference", "paired bootstrap"]
    return ["task", *first, *middle, "won/lost", "p", "p (Holm)", "MDE", "verdict"]


def _alignment(comparison: Comparison) -> list[str]:
    words = ["l", "l"] if len(comparison.candidates) > 1 else ["l"]
    return [*words, *["r"] * (len(_header(comparison)) - len(words) - 1), "l"]


def _cells(comparison: Comparison, line: Line) -> list[str]:
    """All columns but the verdict."""
    scores = [" ".join(pair) for pair in (line.candidate, line.baseline, line.difference)]
    names = [line.name, line.row.candidate] if len(comparison.candidates) > 1 else [line.name]
    return [*names, line.n, *scores, line.bootstrap, line.won_lost, line.p, line.p_adjusted, line.detectable]


def _csv_values(row: Row) -> list[object]:
    scale = 100.0 if row.unit == "points" else 1.0

    def scaled(value: float | None) -> float | None:
        # 0.07 * 100 is 7.000000000000001: ten decimals are more than any score has.
        return None if value is None else round(value * scale, 10)

    def ends(interval: Interval | None) -> list[float | None]:
        return [None, None] if interval is None else [scaled(interval.low), scaled(interval.high)]

    base, cand = row.baseline_score, row.candidate_score
    return [
        *(row.task, row.metric, row.filter, row.length, row.baseline, row.candidate),
        *(row.n, row.samples, row.unit),
        *(scaled(base.mean), *ends(base.interval), scaled(cand.mean), *ends(cand.interval)),
        *(scaled(row.difference), *ends(row.interval), row.interval and row.interval.method),
        *(*ends(row.bootstrap), row.wins, row.losses, row.test, row.p, row.p_adjusted),
        *(row.family, row.family_name, scaled(row.minimum_detectable), row.verdict, row.depth),
    ]
