"""Train the runs of a series, in turn, each by one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Mapping

import torch
from filelock import FileLock, Timeout

from nsa_models.shortage import one_kind_of_shortage
from nsa_models.train.loop import Stopped, StopRequest, train
from nsa_models.train.recipe import Recipe
from nsa_models.train.series._file import Series
from nsa_models.train.series._results import collect, result_before, result_of, write_result
from nsa_settings import SettingsError

_SMALLER = "; lower micro_batch_tokens, which changes rounding alone"


class RunsFailedError(ValueError):
    """Runs that could not be trained; the others were."""


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
        SettingsError: A name of `only` that the series doesn't have.
        Stopped: Time is up, SIGTERM or Ctrl-C; the same call goes on there.
        RunsFailedError: Some runs are finished under another recipe: nothing is trained. Or what `train` says
            of some with a ValueError, or memory that they are too large for: all others are trained first.
        FileNotFoundError: No training text.
    """
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    unknown = sorted(set(only) - series.recipes.keys())
    if unknown:
        told = f"no run {', '.join(unknown)} in {series.name}; it has {', '.join(series.recipes)}"
        raise SettingsError([told])
    chosen = {name: recipe for name, recipe in series.recipes.items() if not only or name in only}
    _refuse_other_recipes(chosen)
    held: list[str] = []
    failed: list[str] = []
    stop = StopRequest()
    with stop.listening():
        for name, recipe in chosen.items():
            recipe.output.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(recipe.output / "lock", timeout=0), one_kind_of_shortage():
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
            result_before(recipe)
        except ValueError as error:
            told.append(f"{name}: {error}")
    if told:
        raise RunsFailedError(f"nothing is trained: {'; '.join(told)}")


def _train_one(
    name: str, recipe: Recipe, ends: float | None, stop: StopRequest, log: Callable[[str], None]
) -> None:
    if result_before(recipe) is not None:
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
    write_result(recipe, result)
    for length, at in result["held_out"].items():
        log(
            f"{name}: held out at {length}: text {at['text']:.3f} answer {at['answer']:.4f}, "
            f"{at['right']} of {at['questions']} questions right"
        )
