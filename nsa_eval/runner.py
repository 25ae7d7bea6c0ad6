"""A whole run: config to report."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsa_eval._json import read_json, read_mapping
from nsa_eval._looking import look_at_finished, looks_missing
from nsa_eval._ongoing import OngoingRun
from nsa_eval._profiles import leave_profiles
from nsa_eval.audit import terminal_notes
from nsa_eval.config import ConfigLike, RunConfig, Variant, all_variants, load_config
from nsa_eval.errors import UserError
from nsa_eval.outcome import READ_ANEW, ModelResult, RunResult
from nsa_eval.plan import make_plan
from nsa_eval.progress import Progress, choose
from nsa_eval.rundir import (
    DISK_ERRORS,
    RunDirectory,
    explain_os_error,
    home_of,
    write_atomically,
    write_json,
)

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from nsa_eval._counting import CountingStore
    from nsa_eval.comparison import Compared
    from nsa_eval.executors import Executor
    from nsa_eval.results import Run


def run(
    config: ConfigLike,
    *,
    output: str | os.PathLike[str] | None = None,
    overrides: Iterable[str] = (),
    limit: float | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> RunResult:
    """Evaluate models on tasks, compare them, and write everything into one folder.

    Started again with the same folder and config it goes on where it stopped: finished responses come from
    the store, finished models aren't even loaded.

    Args:
        config: Path of a YAML file, folder of an earlier run, name of a bundled config, a dict of the same
            keys, or a RunConfig.
        output: Folder of the run. Default: the config's own where it is an earlier run, else `runs/` and the
            run's name.
        overrides: `key=value` settings that win over the config.
        limit: Only so many samples of each task: a count, or a fraction below 1; of a grid evenly.
        dry_run: Only plan: no folder, weights, tokenizer or data is touched.
        overwrite: Replace the results of another config in `output`, or of a checkpoint or task that has
            changed since; responses that still apply are reused.
        progress: False for none, or a display of your own. Default: a bar in a terminal, lines elsewhere.

    Returns:
        Scores, comparison, and where the files are.

    Raises:
        ConfigError: What is wrong with the config, by file and line.
        UserError: A folder that can't be used, a task or checkpoint that can't be loaded, ...

    Example:
        >>> result = run("quickstart", output="runs/quickstart")
        >>> result.models[0].scores[0].value
    """
    extra = [] if limit is None else [f"limit={limit:g}"]
    resolved = load_config(config, [*overrides, *extra])
    plan = make_plan(resolved)
    if dry_run:
        return RunResult(config=resolved, plan=plan)
    if output is None:
        output = home_of(config) or Path("runs") / resolved.name
    directory = RunDirectory(output)
    display = progress if isinstance(progress, Progress) else choose(progress)
    try:
        ongoing = OngoingRun(config=resolved, plan=plan, directory=directory, progress=display)
        return _run(ongoing, overwrite=overwrite)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise explain_os_error(error, directory.path) from error
        raise
    finally:
        display.stop()


def _run(ongoing: OngoingRun, *, overwrite: bool) -> RunResult:
    from nsa_eval.store import lock_store

    ongoing.directory.check_usable(overwrite=overwrite)
    # Whoever changes anything in the folder holds its lock; reading it needs none.
    lock = lock_store(ongoing.directory.store_path)
    try:
        return _run_locked(ongoing, lock, overwrite=overwrite)
    finally:
        lock.release()


def _run_locked(ongoing: OngoingRun, lock: BaseFileLock, *, overwrite: bool) -> RunResult:
    """Evaluate what is missing, compare, and report: each step finds out what is there already."""
    config, directory = ongoing.config, ongoing.directory
    changed = directory.prepare(config, overwrite=overwrite)
    variants = all_variants(config)
    for variant in variants:
        _check_sources(variant, ongoing, overwrite=overwrite)
    waiting = [variant for variant in variants if directory.results_file(variant.name) is None]
    unseen = [v for v in variants if v not in waiting and looks_missing(v, ongoing)]
    once: list[str] = []
    if waiting or unseen:
        _evaluate(waiting, unseen, ongoing, lock)
        once = leave_profiles(waiting, directory)
    _write_audit(variants, directory)
    fresh = changed or bool(waiting) or bool(unseen)
    ongoing.progress.say("comparing and writing the report")
    results = functools.cache(lambda: _results(config, directory))
    compared = _compare(config, directory, results, fresh=fresh)
    report = _report(config, directory, results, compared, fresh=fresh)
    audit = _read_audit(directory)
    return RunResult(
        config=config,
        plan=ongoing.plan,
        output=directory.path,
        models=tuple(ModelResult.read(variant.name, directory) for variant in variants),
        comparison=compared.comparison,
        report=report,
        audit=audit,
        notes=(
            *terminal_notes(audit),
            *once,
            *([f"not compared: {compared.message}"] if compared.message else []),
        ),
    )


def _evaluate(waiting: list[Variant], unseen: list[Variant], ongoing: OngoingRun, lock: BaseFileLock) -> None:
    """Run the variants that have no results yet, those of one checkpoint together; look at unseen ones."""
    from nsa_eval._counting import CountingStore, Workload
    from nsa_eval._evaluate import evaluate_checkpoint
    from nsa_eval.store import ResponseStore

    directory, plan, progress = ongoing.directory, ongoing.plan, ongoing.progress
    with contextlib.closing(ResponseStore.open(directory.store_path, lock=lock)) as opened:
        store = CountingStore(opened, progress)
        _check_variants(waiting)
        workload = Workload([job for variant in waiting for job in plan.of(variant.name)], progress)
        _write_env(ongoing.config, directory)
        with contextlib.closing(_Executors(ongoing.config, store)) as executors:
            for variants in _by_checkpoint(waiting):
                evaluate_checkpoint(
                    variants, ongoing, store=store, executor=executors.of(variants), workload=workload
                )
            for variants in _by_checkpoint(unseen):
                look_at_finished(variants, ongoing, store=store, executor=executors.of(variants))


class _Executors:
    """The executors of a run, made when they are needed: no cluster is started for models that need none."""

    def __init__(self, config: RunConfig, store: CountingStore) -> None:
        self._config, self._store = config, store
        self._made: dict[bool, Executor] = {}

    def of(self, variants: list[Variant]) -> Executor:
        """Who answers for variants of one checkpoint: its class of lm-eval's, or the config's executor."""
        from nsa_eval.executors import LmEvalExecutor, make_executor

        config, store = self._config, self._store
        foreign = variants[0].checkpoint.lm is not None
        if foreign not in self._made:
            self._made[foreign] = (
                LmEvalExecutor(config.engine, store)
                if foreign
                else make_executor(config.executor, settings=config.engine, store=store)
            )
        return self._made[foreign]

    def close(self) -> None:
        """Close all of them, the last first, whatever one raises."""
        with contextlib.ExitStack() as stack:
            for executor in self._made.values():
                stack.callback(executor.close)


def _by_checkpoint(variants: list[Variant]) -> list[list[Variant]]:
    groups = itertools.groupby(variants, key=lambda variant: variant.checkpoint.name)
    return [list(together) for _, together in groups]


def _check_variants(variants: Iterable[Variant]) -> None:
    """Refuse config fields that can't be set before anything is computed: sweeps come last otherwise."""
    import nsa_models

    for variant in variants:
        if variant.changes:
            model = variant.checkpoint
            nsa_models.config_with(nsa_models.load_config(model.path, **model.source), variant.changes)


def _check_sources(variant: Variant, ongoing: OngoingRun, *, overwrite: bool) -> None:
    """Refuse results whose checkpoint or tasks have changed since, or have them made anew."""
    from nsa_eval._sources import changes

    directory = ongoing.directory
    file = directory.results_file(variant.name)
    if file is None:
        return
    recorded = read_mapping(file, READ_ANEW).get("config")
    if not isinstance(recorded, dict):
        raise UserError(f"{file}: damaged, 'config' should be a mapping. {READ_ANEW}")
    jobs, include_path = ongoing.plan.of(variant.name), ongoing.config.include_path
    found = changes(variant, jobs, recorded, include_path)
    if found and overwrite:
        directory.forget(variant.name)
    elif found:
        raise UserError(
            f"{variant.name}: {'; '.join(found)} {directory.path} was made. Add --overwrite to evaluate it "
            "anew (finished responses that still apply are kept and reused), or choose another folder with -o"
        )


def _write_env(config: RunConfig, directory: RunDirectory) -> None:
    """Describe machine and versions at the first start; later starts that compute are listed under it."""
    from nsa_eval.env import describe

    file = directory.path / "env.json"
    now = describe(seeds=config.seed)
    if not file.is_file():
        write_json(file, now)
        return
    first = read_mapping(file, READ_ANEW)
    first.setdefault("resumed", []).append(now)
    write_json(file, first)


def _write_audit(variants: Iterable[Variant], directory: RunDirectory) -> None:
    """Gather the variants' audits, which came into place together with their results."""
    files = {variant.name: directory.path / variant.name / "audit.json" for variant in variants}
    events = {name: _read_events(file) for name, file in files.items() if file.is_file()}
    text = json.dumps(events, indent=2, ensure_ascii=False) + "\n"
    file = directory.path / "audit.json"
    if not file.is_file() or file.read_bytes() != text.encode():
        write_atomically(file, text)


def _read_events(file: Path) -> list[dict[str, Any]]:
    events = read_json(file, READ_ANEW)
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise UserError(f"{file}: damaged, expected a list of events. {READ_ANEW}")
    return events


def _read_audit(directory: RunDirectory) -> tuple[dict[str, Any], ...]:
    events = read_mapping(directory.path / "audit.json", READ_ANEW)
    return tuple({"model": model, **event} for model, listed in events.items() for event in listed)


def _results(config: RunConfig, directory: RunDirectory) -> Run:
    """The config's variants, in its order: the folder may hold others from before."""
    from nsa_eval.results import load_run

    run = load_run(directory.path)
    names = [variant.name for variant in all_variants(config)]
    named = {name: run.models[name] for name in names if name in run.models}
    return run.model_copy(update={"models": named})


def _compare(
    config: RunConfig, directory: RunDirectory, results: Callable[[], Run], *, fresh: bool
) -> Compared:
    """Compare the models of a run; models that can't be compared are a note, not a failure of the run."""
    from nsa_eval.comparison import Compared, compare_run, read_comparison, to_table

    if len(all_variants(config)) < 2:
        return Compared()
    file, table = directory.path / "comparison.json", directory.path / "comparison.md"
    stored = None if fresh else read_comparison(file)
    if stored is not None:
        return Compared(comparison=stored)
    compared = compare_run(results())
    if compared.comparison is None:
        file.unlink(missing_ok=True)
        table.unlink(missing_ok=True)
    else:
        write_atomically(file, compared.comparison.model_dump_json(indent=2) + "\n")
        write_atomically(table, to_table(compared.comparison, "md"))
    return compared


def _report(
    config: RunConfig,
    directory: RunDirectory,
    results: Callable[[], Run],
    compared: Compared,
    *,
    fresh: bool,
) -> Path:
    from nsa_eval.report import render_report

    file = directory.path / "report.html"
    if fresh or not file.is_file():
        render_report(
            directory.path,
            out=file,
            title=config.report.title,
            comparison=compared.comparison,
            refusal=compared.refusal,
            run=results(),
        )
    return file
