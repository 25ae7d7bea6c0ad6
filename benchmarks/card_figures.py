"""Figures of finished runs as Markdown tables, for the cards of checkpoints.

    python benchmarks/card_figures.py runs/essays runs/books runs/ppl

Scores by length with their intervals, needle grids by depth, bits a byte and nats a token by position, and
selection recall where a run looked: the figures of the run's own report, for pasting beside its command.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nsa_eval.comparison import compare_run
from nsa_eval.errors import UserError
from nsa_eval.material import Material
from nsa_eval.results import Run, load_run
from nsa_eval.sections import heatmaps, looks, positions
from nsa_reports import HeatmapGroup, LengthRow, ShownScore

NATS = "nll"
Value = Callable[[float], str]


def figures(runs: Sequence[Path]) -> str:
    """All tables of some runs' folders, each run under a heading.

    Raises:
        UserError: Not a run's folder, or a damaged file.
    """
    return "\n\n".join(part for folder in runs for part in _of_run(load_run(folder)))


def _of_run(run: Run) -> Iterator[str]:
    compared = compare_run(run, stored=run.directory / "comparison.json")
    material = Material(run, compared.comparison, compared.refusal)
    title = ((run.config or {}).get("report") or {}).get("title", "")
    yield f"## {run.directory.name}" + (f": {title}" if title else "")
    names = list(material.models)
    needles = heatmaps.build(material)
    for group in needles.groups if needles else ():
        score: Value = _percent if group.percent else _plain
        what = f"{group.task}, {'%' if group.percent else group.unit}"
        yield _by_length(what, names, group.by_length, score)
        yield from _grids(what, group, score)
    texts = positions.build(material)
    for task in texts.tasks if texts else ():
        for curves in task.groups:
            what = f"{task.task}, {curves.unit}, up to"
            yield _by_length(what, names, curves.rows, _plain)
            if curves.metric == NATS:
                yield _perplexities(task.task, names, curves.rows)
    looked = looks.build(material)
    for found in looked.tasks if looked else ():
        for model in found.models:
            yield _recall(found.task, model)


def _by_length(what: str, names: Sequence[str], rows: Sequence[LengthRow], value: Value) -> str:
    """A line for each model and each difference, a column for each length or bucket."""
    lines = [[what, *(f"{row.length:,}" for row in rows)]]
    lines.append(["documents", *(str(row.n or "") for row in rows)])
    for index, name in enumerate(names):
        scores = [row.scores[index] for row in rows]
        lines.append([name, *(_with_interval(score, value) for score in scores)])
    signed = _signed(value)
    pairs = dict.fromkeys((pair.candidate, pair.baseline) for row in rows for pair in row.comparisons)
    for candidate, baseline in pairs:
        cells = []
        for row in rows:
            here = [p for p in row.comparisons if (p.candidate, p.baseline) == (candidate, baseline)]
            cells.append(
                f"{signed(here[0].difference)}{_interval(here[0].low, here[0].high, signed)}" if here else ""
            )
        lines.append([f"{candidate} - {baseline}", *cells])
    return _table(lines)


def _grids(what: str, group: HeatmapGroup, value: Value) -> Iterator[str]:
    """Each model's grid: depths down, lengths across."""
    for grid in group.maps:
        at = {(cell.length, cell.depth): cell.value for cell in grid.cells}
        lines = [[f"{what}, {grid.model}", *(f"{length:,}" for length in group.lengths)]]
        for depth in group.depths:
            cells = [at.get((length, depth)) for length in group.lengths]
            lines.append([f"{depth:g} % deep", *("" if cell is None else value(cell) for cell in cells)])
        yield _table(lines)


def _perplexities(task: str, names: Sequence[str], rows: Sequence[LengthRow]) -> str:
    """e to the mean nats a token of each bucket."""

    def perplexity(nats: float) -> str:
        return f"{math.exp(nats):.2f}"

    lines = [[f"{task}, perplexity, up to", *(f"{row.length:,}" for row in rows)]]
    for index, name in enumerate(names):
        lines.append([name, *(_with_interval(row.scores[index], perplexity) for row in rows)])
    return _table(lines)


def _recall(task: str, model: looks.ModelLooks) -> str:
    """Selection recall, and documents by what was selected and what was answered."""
    outcomes = [outcome for outcome in model.outcomes if outcome.length is not None]
    lines = [
        [f"{task}, {model.model}", *(f"{outcome.length:,}" for outcome in outcomes)],
        ["documents looked at", *(str(outcome.n) for outcome in outcomes)],
        ["selection recall, %", *(_percent(outcome.recall) for outcome in outcomes)],
        ["selected: right, wrong", *(f"{one.right}, {one.misread}" for one in outcomes)],
        ["not selected: right, wrong", *(f"{one.missed_right}, {one.missed_wrong}" for one in outcomes)],
        ["nothing to choose: right, wrong", *(f"{one.always_right}, {one.always_wrong}" for one in outcomes)],
    ]
    return _table(lines)


def _with_interval(score: ShownScore | None, value: Value) -> str:
    if score is None or score.value is None:
        return ""
    return value(score.value) + _interval(score.low, score.high, value)


def _interval(low: float | None, high: float | None, value: Value) -> str:
    return "" if low is None or high is None else f" [{value(low)}, {value(high)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def _plain(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: Value) -> Value:
    """The same with a sign before it: of a difference."""
    return lambda number: ("+" if number > 0 else "") + value(number)


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables of the runs named on the command line."""
    parser = argparse.ArgumentParser(description="Figures of finished runs, for cards.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    runs = parser.parse_args(argv).runs
    try:
        print(figures(runs))
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
