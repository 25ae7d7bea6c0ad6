"""One model of a run: load it, run its tasks with lm-eval, stage the files of lm-eval's tracker."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsa_eval.config import ModelSpec, RunConfig
from nsa_eval.errors import UserError
from nsa_eval.plan import Job
from nsa_eval.progress import Progress
from nsa_eval.rundir import RunDirectory, write_json

if TYPE_CHECKING:
    from nsa_eval.store import ResponseStore

_GUESSED_TOKENS = 400
"""Tokens of a document of lm-eval's own tasks, for the progress bar alone, until the prompts are built."""


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
    from nsa_eval._lm_eval import evaluate_tasks
    from nsa_eval._quiet import quiet
    from nsa_eval._tasks import load_tasks

    with quiet() as heard:
        options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        progress.say(f"{model.name}: preparing tasks")
        tokenizer = nsa_models.load_tokenizer(model.path, **options)
        if model.chat_template and not getattr(tokenizer, "chat_template", None):
            raise UserError(f"{model.name}: its tokenizer has no chat template: leave chat_template out")
        tasks = load_tasks(model, jobs, config)
        guessed = sum(tasks.documents(job.task) * _GUESSED_TOKENS for job in jobs if job.tokens is None)
        progress.change_total(guessed)
        progress.say(f"{model.name}: loading")
        weights = nsa_models.load_model(
            model.path, dtype=model.dtype, device=model.device, backend=model.backend, **options
        )
        fingerprint = nsa_models.fingerprint(model.path, revision=model.revision)
        engine = _make_engine(
            weights, tokenizer, fingerprint, model, config, store, progress, truncations=tasks.truncations
        )
        progress.say(model.name)
        planned = progress.done + guessed + sum(job.tokens or 0 for job in jobs)
        results = evaluate_tasks(engine, tasks, model, config)
        results["config"] |= {
            "model_name": model.name,
            "model_path": model.path,
            "model_fingerprint": fingerprint,
            "attention": str(getattr(weights.config, "attention", "full")),
            "backend": model.backend,
        }
        audit = [event.model_dump(mode="json") for event in engine.audit]
        _stage(results, model, engine, directory, audit)
    for message in (*_doubts(model), *tasks.notes, *heard.messages):
        progress.note(f"{model.name}: {message}")
    progress.change_total(progress.done - planned)  # replies shorter than their budget, guesses that were off
    del engine, weights
    _free_memory()
    return directory.publish(model.name)


def _doubts(model: ModelSpec) -> list[str]:
    """`simple_evaluate`'s warning and its rule: only a checkpoint's name tells that it wants its template."""
    name = Path(model.path).name.lower()
    if model.chat_template or not any(part in name for part in ("inst", "chat")):
        return []
    return ["seems to be a chat model, but chat_template isn't set: it was asked without its template"]


def _make_engine(
    weights: Any,  # noqa: ANN401  (PreTrainedModel)
    tokenizer: Any,  # noqa: ANN401  (PreTrainedTokenizerBase)
    fingerprint: str,
    model: ModelSpec,
    config: RunConfig,
    store: ResponseStore,
    progress: Progress,
    *,
    truncations: Mapping[str, Any],
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
        truncations=truncations,
        prefill_chunk=settings.prefill_chunk,
        share_prefixes=settings.share_prefixes,
        cuda_graphs=settings.cuda_graphs,
        add_bos_token=settings.add_bos_token,
        store=CountingStore(store, progress),
        store_context=store_context(weights, fingerprint, model, config),
    )


def store_context(weights: Any, fingerprint: str, model: ModelSpec, config: RunConfig) -> str:  # noqa: ANN401
    """Everything about the model and its settings that a response depends on, as one string.

    Batch size, prefill chunk, prefix sharing and CUDA graphs aren't in it: they may not change a response.
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
