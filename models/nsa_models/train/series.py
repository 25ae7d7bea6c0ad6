"""A series: runs that differ in a few keys of one recipe, trained in turn, and one file of what came of them.

    python -m nsa_models.train.series models/nsa_models/recipes/series/ladder.yaml

Started once for each GPU, the processes share the list: each takes the next run that is neither done nor in
another's hands.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from nsa_models.train._commands import add_changes, ended
from nsa_models.train.corpus import load_corpus
from nsa_models.train.held_out import HeldOutTest
from nsa_models.train.learner import Learner
from nsa_models.train.loop import Stopped, StopRequest, train
from nsa_models.train.parallel import joined
from nsa_models.train.recipe import Recipe, RecipeError, checked, read_yaml, set_from_text, set_key
from nsa_models.train.state import Progress, RunFolder, refuse_another

FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Changes = dict[str, Any]
"""Keys of a recipe (`stages.1.max_steps`) and their values, as for the trainer's --set."""

_RESULT = "result.json"
_SMALLER = "; lower micro_batch_tokens, which changes rounding alone"
_DIGITS = 5  # of losses in the files: more than a step's loss means


class SeriesFile(BaseModel):
    """What a series' YAML holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: FolderName
    output: Path
    """Folder with a folder for each run, and NAME.json."""
    base: Path
    """Recipe that all runs begin from, relative to the series' own folder."""
    set: Changes = {}
    """What all runs have otherwise than the base."""
    runs: Annotated[dict[FolderName, Changes], Field(min_length=1)]
    """What each run has otherwise again, by the run's name; {} = nothing. They are trained in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series whose recipes are checked."""

    name: str
    output: Path
    recipes: Mapping[str, Recipe]
    """By the runs' names, in order."""

    @property
    def file(self) -> Path:
        """What came of all runs."""
        return self.output / f"{self.name}.json"


class RunsFailedError(ValueError):
    """Runs that could not be trained; the others were."""


def load_series(path: Path, changes: Sequence[str] = (), *, output: Path | None = None) -> Series:
    """Read a series and the recipe of each of its runs.

    Args:
        path: YAML file.
        changes: Keys to set otherwise in every run, as for a recipe.
        output: Folder in place of the file's own.

    Raises:
        RecipeError: A file can't be read, or a key of the series or of a run's recipe is unknown or wrong.
    """
    file = checked(SeriesFile, read_yaml(path), str(path))
    folder = file.output if output is None else output
    recipes = {}
    for name, own in file.runs.items():
        raw = read_yaml(path.parent / file.base)
        if not isinstance(raw, dict):
            raise RecipeError(
                f"{path.parent / file.base}: expected a recipe's keys and values, got {raw!r:.60}"
            )
        for where, keys in (("set", file.set), (f"runs.{name}", own)):
            for key, value in keys.items():
                _refuse_names(key, f"{path}: {where}")
                try:
                    set_key(raw, key, copy.deepcopy(value))  # a later key may change a part of it
                except ValueError as error:
                    raise RecipeError(f"{path}: {where}.{key}: {error} in {file.base}") from error
        for change in changes:
            _refuse_names(change.partition("=")[0], "--set")
            set_from_text(raw, change)
        raw |= {"name": f"{file.name}-{name}", "output": str(folder / name)}
        recipes[name] = checked(Recipe, raw, f"{path}: runs.{name}")
    return Series(name=file.name, output=folder, recipes=recipes)


def _refuse_names(key: str, where: str) -> None:
    if key in ("name", "output"):
        raise RecipeError(
            f"{where}: {key} of a run follows from the series; name the run otherwise, or give --output"
        )


def train_series(
    series: Series,
    *,
    only: Collection[str] = (),
    minutes: float | None = None,
    log: Callable[[str], None] = print,
) -> list[str]:
    """Train what isn't done, in order, and write what came of each run and of all.

    Args:
        series: The runs.
        only: Names of the runs to train; none = all.
        minutes: Time after which the run at hand saves its state and `Stopped` is raised.
        log: Called with lines of text, each begun with the run's name.

    Returns:
        Names of the runs that another process has in its hands.

    Raises:
        RecipeError: A name of `only` that the series doesn't have.
        Stopped: Time is up, SIGTERM or Ctrl-C; the same call goes on there.
        RunsFailedError: Some runs are finished under another recipe: nothing is trained. Or what `train` says
            of some with a ValueError, or memory that they are too large for: all others are trained first.
        FileNotFoundError: No training text.
    """
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    unknown = sorted(set(only) - series.recipes.keys())
    if unknown:
        raise RecipeError(f"no run {', '.join(unknown)} in {series.name}; it has {', '.join(series.recipes)}")
    chosen = {name: recipe for name, recipe in series.recipes.items() if not only or name in only}
    _refuse_other_recipes(chosen)
    held: list[str] = []
    failed: list[str] = []
    stop = StopRequest()
    with stop.listening():
        for name, recipe in chosen.items():
            recipe.output.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(recipe.output / "lock", timeout=0):
                    _train_one(name, recipe, ends, stop, log)
            except Timeout:
                log(f"{name}: in the hands of another process")
                held.append(name)
            except (ValueError, torch.OutOfMemoryError) as told:
                error = f"{told}{_SMALLER if isinstance(told, torch.OutOfMemoryError) else ''}"
                log(f"{name}: {error}")
                failed.append(f"{name}: {error}")
            collect(series)
    if failed:
        raise RunsFailedError("; ".join(failed))
    return held


def _refuse_other_recipes(recipes: Mapping[str, Recipe]) -> None:
    """Refuse, before anything is trained, runs whose folders hold finished ones of another recipe."""
    told = []
    for name, recipe in recipes.items():
        try:
            _result_before(recipe)
        except ValueError as error:
            told.append(f"{name}: {error}")
    if told:
        raise RunsFailedError(f"nothing is trained: {'; '.join(told)}")


def _train_one(
    name: str, recipe: Recipe, ends: float | None, stop: StopRequest, log: Callable[[str], None]
) -> None:
    if _result_before(recipe) is not None:
        log(f"{name}: done before")
        return
    left = None if ends is None else (ends - time.monotonic()) / 60
    if stop.asked or (left is not None and left <= 0):
        raise Stopped(f"stopped before {name} with everything saved; run again to go on")
    gc.collect()  # of the last run, whose memory would count as this one's
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    train(recipe, minutes=left, log=lambda line: log(f"{name}: {line}"), stop=stop)
    result = result_of(recipe)
    _write(recipe.output / _RESULT, result)
    for length, at in result["held_out"].items():
        log(
            f"{name}: held out at {length}: text {at['text']:.3f} answer {at['answer']:.4f}, "
            f"{at['right']} of {at['questions']} questions right"
        )


def _result_before(recipe: Recipe) -> dict[str, Any] | None:
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
                found[name] = _result_before(recipe)
        found = {name: result for name, result in found.items() if result is not None}
        missing = [name for name in series.recipes if name not in found]
        _write(series.file, {"series": series.name, "missing": missing, "runs": found})
    return series.file


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m nsa_models.train.series",
        description="Train the runs of a series. For several GPUs start it once for each, with its "
        "CUDA_VISIBLE_DEVICES: the processes share the runs.",
    )
    parser.add_argument("series", type=Path, help="series in YAML, see models/nsa_models/recipes/series/")
    parser.add_argument(
        "--only",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        metavar="NAME,...",
        help="runs to train; default: all",
    )
    add_changes(parser, "every run's recipe", "text.cache=corpus")
    parser.add_argument("--output", type=Path, help="folder for the runs in place of the series' own")
    parser.add_argument(
        "--minutes", type=float, help="time after which the state is saved and the series ends, of all runs"
    )
    parser.add_argument("--list", action="store_true", help="train nothing: print the runs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train a series; 0 when no run is left to take, 3 when stopped with its state saved, 2 for a mistake."""
    args = command_line().parse_args(argv)

    def run() -> None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("a series' runs have one GPU each: start it once for each GPU, not by torchrun")
        series = load_series(args.series, args.changes, output=args.output)
        if args.list:
            for name, recipe in series.recipes.items():
                steps = sum(stage.max_steps for stage in recipe.stages)
                done = "to do" if _result_before(recipe) is None else "done"
                print(f"{name}: {steps} steps, {steps * recipe.batch_tokens / 1e6:.1f}M tokens, {done}")
            return
        held = train_series(series, only=args.only, minutes=args.minutes)
        if held:
            print(f"{', '.join(held)} in the hands of other processes")
        print(f"results in {series.file}")

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
