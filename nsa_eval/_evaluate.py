"""One model of a run: load it, run its tasks with lm-eval, stage the files of lm-eval's tracker."""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsa_eval.catalog import task_names
from nsa_eval.config import ModelSpec, RunConfig, TaskSpec
from nsa_eval.errors import UserError
from nsa_eval.plan import Job, limited, own_tasks
from nsa_eval.progress import Progress
from nsa_eval.rundir import RunDirectory, write_json

if TYPE_CHECKING:
    from nsa_eval.store import ResponseStore

_GUESSED_TOKENS = 400
"""Tokens of a document of lm-eval's own tasks, for the progress bar alone, until the prompts are built."""


_NOT_FOUND = {
    "ConnectError",
    "DatasetNotFoundError",
    "HfHubHTTPError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
}
"""Names of what the hub's libraries raise when data can't be had; importing them all would take seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tasks:
    """The tasks of one model, built by lm-eval.

    Attributes:
        manager: What built them; without it lm-eval would make another, with an index of 7 seconds.
        specs: What `simple_evaluate` is given: lm-eval's Task and Group objects.
        leaves: Every single task by name, with the spec that asked for it.
    """

    manager: Any
    specs: list[Any]
    leaves: dict[str, tuple[Any, TaskSpec]]


def evaluate_model(
    model: ModelSpec,
    jobs: Sequence[Job],
    config: RunConfig,
    *,
    directory: RunDirectory,
    store: ResponseStore,
    progress: Progress,
) -> Path:
    """Run all tasks of one model and publish its folder.

    The tokenizer and the tasks come first: a missing data set or a bad parameter shows before the weights
    are read.

    Args:
        model: The checkpoint.
        jobs: Its jobs.
        config: The whole run's config.
        directory: Where results go.
        store: Finished responses; asked first, and written to as responses come.
        progress: Told of every stage and response.

    Returns:
        The results file.

    Raises:
        UserError: A task that can't be loaded, a prompt that is too long, a full disk, ...
        ModelLoadError: A checkpoint that can't be loaded.
    """
    import nsa_models
    from nsa_eval._quiet import quiet

    with quiet() as heard:
        options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        progress.say(f"{model.name}: preparing tasks")
        tokenizer = nsa_models.load_tokenizer(model.path, **options)
        if model.chat_template and not getattr(tokenizer, "chat_template", None):
            raise UserError(f"{model.name}: its tokenizer has no chat template: leave chat_template out")
        tasks = _build_tasks(model, jobs, config)
        guessed = sum(_guess(tasks, job) for job in jobs if job.tokens is None)
        progress.change_total(guessed)
        progress.say(f"{model.name}: loading")
        weights = nsa_models.load_model(
            model.path, dtype=model.dtype, device=model.device, backend=model.backend, **options
        )
        fingerprint = nsa_models.fingerprint(model.path, revision=model.revision)
        engine = _make_engine(weights, tokenizer, fingerprint, model, config, store, progress)
        progress.say(model.name)
        planned = progress.done + guessed + sum(job.tokens or 0 for job in jobs)
        results = _simple_evaluate(engine, tasks, model, config)
        results["config"] |= {
            "model_name": model.name,
            "model_path": model.path,
            "model_fingerprint": fingerprint,
            "attention": str(getattr(weights.config, "attention", "full")),
            "backend": model.backend,
        }
        audit = [event.model_dump(mode="json") for event in engine.audit]
        _stage(results, model, engine, directory, audit)
    for message in heard.messages:
        progress.note(f"{model.name}: {message}")
    progress.change_total(progress.done - planned)  # replies shorter than their budget, guesses that were off
    del engine, weights
    _free_memory()
    return directory.publish(model.name)


def _build_tasks(model: ModelSpec, jobs: Sequence[Job], config: RunConfig) -> _Tasks:
    import nsa_models
    import nsa_tasks

    own = own_tasks()
    manager = _task_manager({job.task.task for job in jobs} - own, config.include_path)
    specs: list[Any] = []
    leaves: dict[str, tuple[Any, TaskSpec]] = {}
    for job in jobs:
        task = job.task
        try:
            if task.task in own:
                spec: Any = nsa_tasks.task_spec(
                    task.task,
                    task.params,
                    tokenizer=nsa_models.resolve(model.path),
                    apply_chat_template=bool(model.chat_template),
                    alias=task.alias,
                    revision=model.revision,
                    trust_remote_code=model.trust_remote_code,
                    add_bos_token=config.engine.add_bos_token,
                )
            else:
                spec = task.task
            loaded = manager.load([spec])
        except (UserError, nsa_tasks.TaskParameterError):
            raise
        except Exception as error:
            raise _task_error(task, error) from error
        children = {name for group in loaded.get("groups", {}).values() for name in _leaf_names(group)}
        groups = list(loaded.get("groups", {}).values())
        inner = {name for names in loaded.get("group_map", {}).values() for name in names}
        specs += [group for group in groups if group.name not in inner]
        specs += [built for name, built in loaded["tasks"].items() if name not in children]
        for name, built in loaded["tasks"].items():
            if name in leaves:
                raise UserError(
                    f"task {name} is asked for twice (by {leaves[name][1].label} and {task.label}): keep one"
                )
            _configure(built, task)
            leaves[name] = (built, task)
    return _Tasks(manager=manager, specs=specs, leaves=leaves)


def _task_manager(names: set[str], include_path: Sequence[str]) -> Any:  # noqa: ANN401  (TaskManager)
    """lm-eval's own, without its 7 seconds of indexing where no task of its own is asked for."""
    from lm_eval.tasks import TaskManager

    folders = [str(Path(folder).expanduser()) for folder in include_path]
    if names <= task_names(folders):  # our own tasks come as complete dicts and need no index at all
        return TaskManager(include_defaults=False, include_path=folders or None)
    return TaskManager(include_path=folders) if folders else _default_task_manager()


@functools.cache
def _default_task_manager() -> Any:  # noqa: ANN401  (TaskManager)
    """The installed tasks don't change: one index serves all models of a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _leaf_names(group: Any) -> list[str]:  # noqa: ANN401  (lm_eval.api.group.Group)
    return [task.task_name for task in group.get_all_tasks()]


def _configure(built: Any, task: TaskSpec) -> None:  # noqa: ANN401  (lm_eval.api.task.Task)
    """Give a built task its own few-shot count and generation settings, by lm-eval's rules."""
    if task.num_fewshot is not None and built.get_config("num_fewshot") != 0:
        built.set_config(key="num_fewshot", value=task.num_fewshot)
    if task.gen_kwargs and built.get_config("output_type") == "generate_until":
        built.set_config(key="generation_kwargs", value=dict(task.gen_kwargs), update=True)


def _task_error(task: TaskSpec, error: Exception) -> Exception:
    """A data set that can't be had is the user's to mend; anything else is ours."""
    name = type(error).__name__
    offline = isinstance(error, ConnectionError | FileNotFoundError | TimeoutError) or name in _NOT_FOUND
    text = " ".join(str(error).split())[:300]
    if offline or isinstance(error, ModuleNotFoundError):
        return UserError(f"task {task.label} can't be loaded ({name}: {text})")
    if isinstance(error, ValueError):  # lm-eval's and our tasks' way to refuse a setting
        return UserError(f"task {task.label}: {text}")
    return error


def _guess(tasks: _Tasks, job: Job) -> int:
    """Tokens of a job of lm-eval's own, now that its data is there."""
    documents = sum(
        limited(len(built.eval_docs), task.limit) for built, task in tasks.leaves.values() if task is job.task
    )
    return documents * _GUESSED_TOKENS


def _make_engine(
    weights: Any,  # noqa: ANN401  (PreTrainedModel)
    tokenizer: Any,  # noqa: ANN401  (PreTrainedTokenizerBase)
    fingerprint: str,
    model: ModelSpec,
    config: RunConfig,
    store: ResponseStore,
    progress: Progress,
) -> Any:  # noqa: ANN401  (Engine)
    from nsa_eval._counting import CountingStore
    from nsa_eval.engine import Engine

    settings = config.engine
    return Engine(
        weights,
        tokenizer,
        batch_size=settings.batch_size,
        max_length=model.max_length,
        truncation=settings.truncation,
        prefill_chunk=settings.prefill_chunk,
        share_prefixes=settings.share_prefixes,
        add_bos_token=settings.add_bos_token,
        store=CountingStore(store, progress),
        store_context=store_context(weights, fingerprint, model, config),
    )


def store_context(weights: Any, fingerprint: str, model: ModelSpec, config: RunConfig) -> str:  # noqa: ANN401
    """Everything about the model and its settings that a response depends on, as one string.

    Batch size, prefill chunk and prefix sharing aren't in it: they may not change a response.
    """
    parameter = next(weights.parameters())
    return json.dumps(
        {
            "fingerprint": fingerprint,
            "dtype": str(parameter.dtype),
            "device": parameter.device.type,
            "backend": model.backend,
            "max_length": model.max_length,
            "truncation": config.engine.truncation,
            "add_bos_token": config.engine.add_bos_token,
            "torch_seed": config.seed[2],
        },
        sort_keys=True,
    )


def _simple_evaluate(engine: Any, tasks: _Tasks, model: ModelSpec, config: RunConfig) -> dict[str, Any]:  # noqa: ANN401
    from lm_eval import simple_evaluate

    python_seed, numpy_seed, torch_seed, fewshot_seed = config.seed
    results = simple_evaluate(
        model=engine,
        model_args={"pretrained": model.path, "dtype": model.dtype, "revision": model.revision},
        tasks=tasks.specs,
        task_manager=tasks.manager,
        batch_size=config.engine.batch_size,
        device=model.device,
        apply_chat_template=model.chat_template,
        system_instruction=model.system_instruction,
        random_seed=python_seed,
        numpy_random_seed=numpy_seed,
        torch_random_seed=torch_seed,
        fewshot_random_seed=fewshot_seed,
        **_limits(tasks),
    )
    if results is None:  # only on ranks above 0, which the runner never is
        raise RuntimeError("lm-eval returned no results")
    return dict(results)


def _limits(tasks: _Tasks) -> dict[str, Any]:
    """lm-eval knows one limit for all tasks; limits that differ become lists of document numbers."""
    limits = {task.limit for _, task in tasks.leaves.values()}
    if len(limits) == 1:
        return {"limit": limits.pop()}
    return {
        "samples": {
            name: list(range(limited(len(built.eval_docs), task.limit)))
            for name, (built, task) in tasks.leaves.items()
            if task.limit is not None
        }
    }


def _stage(
    results: dict[str, Any],
    model: ModelSpec,
    engine: Any,  # noqa: ANN401  (Engine)
    directory: RunDirectory,
    audit: list[dict[str, Any]],
) -> None:
    """Let lm-eval's tracker write its files, and make sure that it did: it only logs what goes wrong."""
    from lm_eval.loggers import EvaluationTracker

    samples = results.pop("samples")
    tracker = EvaluationTracker(output_path=str(directory.staging))
    template = engine.chat_template(model.chat_template) if model.chat_template else None
    tracker.general_config_tracker.log_experiment_args(
        model_source="nsa-eval",
        # The tracker names its folder by `pretrained`.
        model_args={"pretrained": model.name},
        system_instruction=model.system_instruction,
        chat_template=template,
        fewshot_as_multiturn=True,
    )
    folder = directory.staging / model.name
    if folder.exists():  # left by a killed run
        for file in folder.iterdir():
            file.unlink()
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
    write_json(folder / "audit.json", audit)
    _verify(folder, {task: len(rows) for task, rows in samples.items()})


def _verify(folder: Path, expected: dict[str, int]) -> None:
    trouble = UserError(
        f"{folder.parent.parent}: results could not be written in full (is the disk full?). "
        "Finished responses are kept: run the same command again"
    )
    try:
        [results] = folder.glob("results_*.json")
        json.loads(results.read_text(encoding="utf-8"))
        date = results.stem.removeprefix("results_")
        for task, count in expected.items():
            with (folder / f"samples_{task}_{date}.jsonl").open("rb") as file:
                if sum(line.endswith(b"\n") for line in file) != count:
                    raise trouble
    except (OSError, ValueError) as error:
        raise trouble from error


def _free_memory() -> None:
    """Let go of one model's memory before the next is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
