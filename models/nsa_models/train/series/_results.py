"""What came of a series' runs: a result in the folder of each, and one file of all."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from filelock import FileLock

from nsa_models.train.corpus import load_corpus
from nsa_models.train.held_out import HeldOutTest
from nsa_models.train.learner import Learner
from nsa_models.train.parallel import joined
from nsa_models.train.recipe import Recipe
from nsa_models.train.series._file import Series
from nsa_models.train.state import Progress, RunFolder, refuse_another

_RESULT = "result.json"
_DIGITS = 5  # of losses in the files: more than a step's loss means


def result_before(recipe: Recipe) -> dict[str, Any] | None:
    """A run's result, where it is done: tested at all of the recipe's lengths.

    Raises:
        ValueError: It is another recipe's.
    """
    path = recipe.output / _RESULT
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    refuse_another(result["recipe"], recipe, len(recipe.stages))
    lengths = [str(length) for length in recipe.test_lengths]
    if not set(lengths) <= set(result["held_out"]):
        return None
    return {**result, "held_out": {length: result["held_out"][length] for length in lengths}}


def result_of(recipe: Recipe) -> dict[str, Any]:
    """Test a trained run on held-out text, with its model's own n, and put it beside the run's log.

    Returns:
        Plain data: `recipe`, `machine`, `parameters`, `steps`, `tokens`, `seconds`, `tokens_per_second` (the
        median of the log), `memory_gib`, `curve` (columns, a row for each logged step) and `held_out` by
        length, see `HeldOut`.
    """
    lines = (recipe.output / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    with joined() as group:
        corpus = load_corpus(recipe.text)
        learner = Learner(recipe, corpus, group)
        RunFolder(recipe, corpus).load(learner, Progress())
        test = HeldOutTest(recipe, corpus)
        held_out = {str(length): asdict(test(learner, length)) for length in recipe.test_lengths}
        device = torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else "CPU"
    last = rows[-1]
    return {
        "recipe": recipe.model_dump(mode="json"),
        "machine": {"device": device, "torch": torch.__version__, "triton": _version("triton")},
        "parameters": sum(weight.numel() for weight in learner.model.parameters()),
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": round(last["seconds"], 1),
        "tokens_per_second": round(median(row["tokens_per_second"] for row in rows)),
        "memory_gib": max((row.get("memory_gib", 0.0) for row in rows), default=0.0),
        "curve": {
            "tokens": [row["tokens"] for row in rows],
            "length": [row["length"] for row in rows],
            **{key: [round(row[key], _DIGITS) for row in rows] for key in ("loss", "answer_loss")},
        },
        "held_out": held_out,
    }


def collect(series: Series) -> Path:
    """Write one file of all runs that are done, and the names of those that aren't; returns its path.

    A result of another recipe counts as none.
    """
    found = {}
    with FileLock(f"{series.file}.lock"):  # else a process could write what it read before another's result
        for name, recipe in series.recipes.items():
            with contextlib.suppress(ValueError):
                found[name] = result_before(recipe)
        found = {name: result for name, result in found.items() if result is not None}
        missing = [name for name in series.recipes if name not in found]
        _write(series.file, {"series": series.name, "missing": missing, "runs": found})
    return series.file


def write_result(recipe: Recipe, result: dict[str, Any]) -> None:
    """Put what came of a run into its folder: the run is done from now on."""
    _write(recipe.output / _RESULT, result)


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
