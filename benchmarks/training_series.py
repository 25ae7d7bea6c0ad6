"""What came of a series of training runs: loss curves in one picture, and a table, put into a page of docs/.

    python benchmarks/training_series.py runs/train/ladder/ladder.json --page docs/ladder.md

Reads the files that `python -m nsa_models.train.series` writes, one or more. A page has a place for each
series, from `<!-- NAME -->` to `<!-- /NAME -->`; what stands there is replaced, and the picture is written
beside the page as NAME.svg. Without a page the tables are printed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from publish_twins import COLOURS, label_axis

from nsa_eval.comparison.intervals import wilson

BINS = 45
"""Points of a curve: each is the mean over an equal share of the tokens, as one step's loss scatters."""
FOUND = 1.0
"""Nats of the answers' loss, under half of what a digit costs that is guessed: ln 10."""
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 2)), (0, (1, 1)))
_PALETTE = (
    *("#1a1a1a", "#1f5a9e", "#b35806", "#1b7f5c", "#8f3a94"),
    *("#b3261e", "#c59b08", "#3aa7c4", "#d16ba5", "#7a5230"),
)
Run = dict[str, Any]
Runs = dict[str, Run]
Points = list[tuple[float, float]]
"""Millions of tokens, and a value."""


def read_series(path: Path) -> tuple[str, Runs]:
    """A series' name and its runs, in order.

    Raises:
        ValueError: The file is no series', or runs are missing in it.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(held, dict) or "runs" not in held or "series" not in held:
        raise ValueError(f"{path}: not written by python -m nsa_models.train.series")
    if held["missing"] or not held["runs"]:
        raise ValueError(f"{path}: not all runs are done, {', '.join(held['missing'])} missing: train them")
    return held["series"], held["runs"]


def references(runs: Runs) -> dict[str, str]:
    """The run that each is compared with: NSA's dense twin where all are twins, else the first one."""
    twins = {
        name: other
        for name, run in runs.items()
        for other, theirs in runs.items()
        if _attention(run) == "nsa" and _attention(theirs) == "full" and _shape(run) == _shape(theirs)
    }
    if 2 * len(twins) == len(runs) == len({*twins, *twins.values()}):
        return twins
    first = next(iter(runs))
    return {name: first for name in runs if name != first}


def _attention(run: Run) -> str:
    return str(run["recipe"]["model"].get("attention", "nsa"))


def _shape(run: Run) -> dict[str, Any]:
    """All of a recipe but what twins differ in."""
    recipe = run["recipe"]
    model = {key: value for key, value in recipe["model"].items() if key != "attention"}
    return {**recipe, "model": model, "name": None, "output": None}


def binned(run: Run, key: str) -> Points:
    """A curve of a run's log in `BINS` points."""
    tokens, values = run["curve"]["tokens"], run["curve"][key]
    most = tokens[-1]
    rows: dict[int, list[tuple[float, float]]] = {}
    for at, value in zip(tokens, values, strict=True):
        rows.setdefault(min(BINS - 1, BINS * at // (most + 1)), []).append((at / 1e6, value))
    return [
        (fmean(at for at, _ in each), fmean(value for _, value in each)) for _, each in sorted(rows.items())
    ]


def differences(run: Run, other: Run, key: str) -> Points:
    """A run's curve less another's, at the steps that both have logged: of the same data."""
    theirs = dict(zip(other["curve"]["tokens"], other["curve"][key], strict=True))
    both = [
        (at, value - theirs[at])
        for at, value in zip(run["curve"]["tokens"], run["curve"][key], strict=True)
        if at in theirs
    ]
    if not both:
        return []
    return binned({"curve": {"tokens": [at for at, _ in both], key: [value for _, value in both]}}, key)


def found_after(run: Run) -> int | None:
    """Tokens of the first logged step from which on the answers' loss stays below `FOUND`; None: of none."""
    after = None
    for at, value in zip(run["curve"]["tokens"], run["curve"]["answer_loss"], strict=True):
        after = None if value >= FOUND else at if after is None else after
    return after


def draw(runs: Runs, path: Path, title: str) -> None:
    """Loss of all tokens, of the answers, and of all tokens less the reference's, over training tokens."""
    compared = references(runs)
    styles = _styles(runs, compared)
    with mpl.rc_context({"svg.hashsalt": "nsa-eval", "font.size": 7.5}):
        figure = Figure(figsize=(8.4, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        text, answers, apart = figure.subplots(1, 3)
        for name, run in runs.items():
            _line(text, binned(run, "loss"), name, styles[name])
            _line(answers, binned(run, "answer_loss"), name, styles[name])
        for name, other in compared.items():
            _line(apart, differences(runs[name], runs[other], "loss"), name, styles[name])
        apart.axhline(0.0, color="black", linewidth=0.5)
        _limit(text, margin=0.1)
        _limit(apart, margin=0.02)
        answers.set_yscale("log")
        label_axis(text, "Loss, all tokens", "nats", legend=False)
        label_axis(answers, "Loss, answers", "nats", legend=False)
        reference = set(compared.values())
        less = f"{reference.pop()}'s" if len(reference) == 1 else "the dense twin's"
        label_axis(apart, f"Loss, all tokens, less {less}", "nats", legend=False)
        figure.legend(
            *text.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=-(-len(runs) // 2),
            frameon=False,
        )
        figure.savefig(path, metadata={"Date": None, "Title": title})


def _limit(axis: Axes, *, margin: float) -> None:
    """Show the values that lines have after their first fifth, where losses fall from ln(vocabulary)."""
    lines = [list(line.get_ydata()) for line in axis.lines]
    late = [value for values in lines for value in values[len(values) // 5 :]]
    axis.set_ylim(min(late) - margin, max(late) + margin)


def _styles(runs: Runs, compared: dict[str, str]) -> dict[str, tuple[str, Any]]:
    """Colour and dashes: of twins the attention and the pair, else by order."""
    if len(set(compared.values())) == len(compared) and 2 * len(compared) == len(runs):
        made = {}
        for dashes, (name, other) in zip(_DASHES * len(runs), compared.items(), strict=False):
            made[other], made[name] = (COLOURS[0], dashes), (COLOURS[1], dashes)
        return made
    return {name: (_PALETTE[index % len(_PALETTE)], _DASHES[index % 3]) for index, name in enumerate(runs)}


def _line(axis: Axes, points: Points, name: str, style: tuple[str, Any]) -> None:
    colour, dashes = style
    axis.plot(*zip(*points, strict=True), label=name, color=colour, linestyle=dashes, linewidth=0.9)


def table(runs: Runs) -> str:
    """The held-out results as Markdown; shares of questions with Wilson's 95 % interval."""
    lengths = sorted({int(length) for run in runs.values() for length in run["held_out"]})
    said = ", ".join(f"{length:,}" for length in lengths)
    heads = (
        "run",
        "parameters",
        f"loss, all tokens, nats, at {said}",
        f"loss, answers, nats, at {said}",
        f"answers in training below {FOUND:g} nat from, M tokens",
        *(f"questions right at {length:,}, %" for length in lengths),
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, run in runs.items():
        after = found_after(run)
        tests = [run["held_out"][str(length)] for length in lengths]
        cells = (
            name,
            f"{run['parameters'] / 1e6:.1f}M",
            ", ".join(f"{test['text']:.3f}" for test in tests),
            ", ".join(f"{test['answer']:.3g}" for test in tests),
            "never" if after is None else f"{after / 1e6:.1f}",
            *(_share(test["right"], test["questions"]) for test in tests),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(right: int, questions: int) -> str:
    between = wilson(right, questions, 0.95)
    return f"{100 * right / questions:.1f} ({100 * between.low:.1f} to {100 * between.high:.1f})"


def summary(name: str, runs: Runs) -> str:
    """What the table says, where it was run, and how many questions it rests on."""

    def all_of(values: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(map(str, values)))

    machines = all_of(
        f"{m['device']} (torch {m['torch']}{', triton ' + m['triton'] if m['triton'] else ''})"
        for m in (run["machine"] for run in runs.values())
    )
    seeds = all_of(run["recipe"]["seed"] for run in runs.values())
    asked = all_of(test["questions"] for run in runs.values() for test in run["held_out"].values())
    steps = all_of(run["steps"] for run in runs.values())
    tokens = all_of(round(run["tokens"] / 1e6) for run in runs.values())
    return (
        f"{len(runs)} runs of {steps} steps, {tokens}M tokens, seed {seeds}, on {machines}. "
        f"Held-out text, {asked} questions a length, "
        f"95 % intervals:\n\n{table(runs)}"
    )


def into_page(page: Path, name: str, text: str) -> None:
    """Put a text into its place in a page.

    Raises:
        ValueError: The page has no such place, or several.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    held = page.read_text(encoding="utf-8")
    parts = re.split(f"(?s){re.escape(begin)}.*?{re.escape(end)}", held)
    if len(parts) != 2:
        raise ValueError(
            f"{page}: expected one place for {name}, from {begin} to {end}, found {len(parts) - 1}"
        )
    page.write_text(f"{parts[0]}{begin}\n{text}\n{end}{parts[1]}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Show the series named on the command line."""
    parser = argparse.ArgumentParser(description="Curves and tables of finished series of training runs.")
    parser.add_argument("series", type=Path, nargs="+", metavar="FILE", help="NAME.json of a series")
    parser.add_argument("--page", type=Path, help="page that has a place for each series")
    args = parser.parse_args(argv)
    try:
        for name, runs in map(read_series, args.series):
            if args.page is None:
                print(summary(name, runs))
                continue
            picture = f"![Loss over training tokens: {name}]({name}.svg)"
            into_page(args.page, name, f"{summary(name, runs)}\n\n{picture}")
            draw(runs, args.page.with_name(f"{name}.svg"), name)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
