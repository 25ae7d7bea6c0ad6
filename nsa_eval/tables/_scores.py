"""Every score of a run as one table: a line for each task or group, metric and model."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nsa_eval._markup import csv_cell, md
from nsa_eval.material import Material
from nsa_eval.results import at_position
from nsa_reports import ScoreRow, ShownScore

SCORES = "scores"
"""Name of its files; no table of a config may have it."""
_COLUMNS = (
    *("task", "depth", "metric", "model", "value", "low", "high", "unit", "n"),
    *("protocol", "data", "truncation"),
)


def write_scores(material: Material, folder: Path) -> list[Path]:
    """Write all scores as scores.md and scores.csv.

    Args:
        material: The run.
        folder: Where; made if it isn't there.

    Returns:
        The files.
    """
    from nsa_eval.rundir import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{SCORES}.md", folder / f"{SCORES}.csv"]
    for file, text in zip(files, (scores_markdown(material), scores_csv(material)), strict=True):
        write_atomically(file, text)
    return files


def scores_csv(material: Material) -> str:
    """A line per task, metric and model, groups before their members.

    Full precision; in points of 100, or raw, as `unit` says.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for depth, row, model, score in _scores(material):
        factor = 100 if row.percent else 1
        ends = (None if end is None else round(end * factor, 10) for end in (score.low, score.high))
        values = [row.task, depth, row.metric, model, round(score.value * factor, 10), *ends]
        values += ["points" if row.percent else "raw", score.n, row.protocol, row.data, row.truncation]
        writer.writerow([csv_cell(value) for value in values])
    return out.getvalue()


def scores_markdown(material: Material) -> str:
    """The same for people: intervals beside the scores."""
    titles = ("task", "metric", "model", "score", "n", "protocol", "data", "truncation")
    out = [f"| {' | '.join(titles)} |", "|:---|:---|:---|---:|---:|:---|:---|:---|"]
    for depth, row, model, score in _scores(material):
        cells = (
            row.metric,
            model,
            _text(row, score),
            str(score.n or ""),
            row.protocol,
            row.data,
            row.truncation,
        )
        out.append(f"| {'&nbsp;&nbsp;' * depth}{md(row.task)} | {' | '.join(md(cell) for cell in cells)} |")
    level = f"{material.figures.confidence * 100:g} %"
    out += [
        "",
        f"Scores in points of 100 with {level} intervals; \\[raw\\]: in the metric's own unit. n: documents.",
    ]
    return "\n".join(out) + "\n"


def _scores(material: Material) -> Iterator[tuple[int, ScoreRow, str, ShownScore]]:
    figures = material.figures
    for name, depth in material.outline:
        for metric, filter_name in figures.metrics(name):
            row = figures.row(name, metric, filter_name)
            rows = [row]
            for bucket in figures.by_length(name, metric, filter_name, figures.positions(name)):
                label = at_position(row.metric, bucket.length)
                rows.append(replace(row, metric=label, scores=bucket.scores, n=bucket.n))
            for one in rows:
                for model, score in zip(material.models, one.scores, strict=True):
                    if score is not None:
                        yield depth, one, model, score


def _text(row: ScoreRow, score: ShownScore) -> str:
    def number(value: float) -> str:
        return f"{value * 100:.1f}" if row.percent else f"{value:.4g}"

    interval = (
        "" if score.low is None or score.high is None else f" [{number(score.low)}, {number(score.high)}]"
    )
    return f"{number(score.value)}{interval}{'' if row.percent else ' [raw]'}"
