"""Two finished training runs become folders of the zoo: weights, log, both curves, and figures for the cards.

    python benchmarks/publish_twins.py runs/train/twin-full-64k runs/train/twin-nsa-64k

Nothing but `model/` and `log.jsonl` of a run's folder is read. What is printed goes into the cards by hand,
beside the command that trained.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

ZOO = Path(__file__).parent.parent / "models" / "nsa_models" / "zoo"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MOST_BYTES = 16_000_000
COLOURS = ("#b35806", "#1f5a9e")  # dense and sparse, as in the reports
Row = dict[str, Any]


def read_log(run: Path) -> list[Row]:
    """The rows of a run's log, by step."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def publish(runs: Sequence[Path], zoo: Path) -> str:
    """Fill the folder of each run's name in `zoo`.

    Returns:
        Figures for the cards, as Markdown.

    Raises:
        ValueError: A file that is missing or too large for the package.
    """
    missing = [path for run in runs for name in FILES if not (path := run / "model" / name).is_file()]
    weights = [run / "model" / "model.safetensors" for run in runs]
    large = [path for path in weights if path.is_file() and path.stat().st_size > MOST_BYTES]
    if missing or large:
        raise ValueError(f"missing: {missing}; over {MOST_BYTES} bytes: {large}")
    logs = {run.name: read_log(run) for run in runs}
    for run in runs:
        folder = zoo / run.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(run / "model" / name, folder / name)
        shutil.copyfile(run / "log.jsonl", folder / "train_log.jsonl")
        draw(logs, folder / "curves.svg")
    return "\n\n".join(figures(name, log) for name, log in logs.items())


def draw(logs: dict[str, list[Row]], path: Path) -> None:
    """Loss of all tokens, of the answers, and held-out questions, of all runs over their tokens."""
    with mpl.rc_context({"svg.hashsalt": "nsa-eval", "font.size": 7.5}):
        figure = Figure(figsize=(8.4, 2.6), layout="constrained")
        FigureCanvasSVG(figure)
        text, answers, held_out = figure.subplots(1, 3)
        for (name, log), colour in zip(logs.items(), COLOURS, strict=True):
            tokens = [row["tokens"] / 1e6 for row in log]
            text.plot(tokens, [row["loss"] for row in log], color=colour, linewidth=0.7, label=name)
            answers.plot(
                tokens, [row["answer_loss_mean"] for row in log], color=colour, linewidth=0.9, label=name
            )
            tested = [row for row in log if "held_out" in row]
            lengths = sorted({int(length) for row in tested for length in row["held_out"]})
            for length, style in zip(lengths, ("-", "--", "-.", ":", "-", "--"), strict=False):
                held_out.plot(
                    [row["tokens"] / 1e6 for row in tested],
                    [100 * row["held_out"][str(length)] for row in tested],
                    color=colour,
                    linestyle=style,
                    linewidth=0.9,
                    label=f"{name}, {length}",
                )
        answers.set_yscale("log")
        label_axis(text, "Loss, all tokens", "nats")
        label_axis(answers, "Loss, answers (running mean)", "nats")
        label_axis(held_out, "Held-out questions", "exact match, %")
        figure.savefig(path, metadata={"Date": None, "Title": ", ".join(logs)})


def label_axis(axis: Axes, title: str, unit: str, *, legend: bool = True) -> None:
    """Title, units, grid, and a legend where there are lines; the other axis is training tokens."""
    axis.set_title(title, fontsize=8.5)
    axis.set_xlabel("training tokens, millions")
    axis.set_ylabel(unit)
    if legend and axis.lines:
        axis.legend(fontsize=5.5, frameon=False)
    axis.grid(visible=True, linewidth=0.3, color="#dddddd")


def figures(name: str, log: list[Row]) -> str:
    """A card's figures: what was spent, how each stage ended, how fast each length was."""
    last = log[-1]
    lines = [
        f"{name}: {last['step']} steps, {last['tokens'] / 1e6:.0f}M tokens, {last['seconds']:.0f} s",
        "",
        "| stage | lengths | last step | loss | answers | held out, % | tokens/s (median) |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in sorted({row["stage"] for row in log}):
        rows = [row for row in log if row["stage"] == stage]
        lengths = sorted({row["length"] for row in rows})
        speed = statistics.median(row["tokens_per_second"] for row in rows)
        tested: dict[str, float] = next((row["held_out"] for row in reversed(rows) if "held_out" in row), {})
        lines.append(
            f"| {stage} | {', '.join(map(str, lengths))} | {rows[-1]['step']} "
            f"| {rows[-1]['loss']:.3f} | {rows[-1]['answer_loss_mean']:.4f} "
            f"| {', '.join(f'{length}: {100 * share:.0f}' for length, share in tested.items())} "
            f"| {speed / 1e3:.0f}k |"
        )
    memory = max((row.get("memory_gib", 0.0) for row in log), default=0.0)
    return "\n".join([*lines, "", f"Peak memory {memory:.1f} GiB." if memory else "On a CPU."])


def main(argv: Sequence[str] | None = None) -> None:
    """Publish the runs named on the command line."""
    parser = argparse.ArgumentParser(description="Put two finished training runs into the zoo.")
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="the dense twin's folder, then NSA's")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    args = parser.parse_args(argv)
    print(publish(args.runs, args.zoo))


if __name__ == "__main__":
    main()
