"""One variant of a run: have its requests answered, let lm-eval score them, stage its tracker's files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsa_eval._counting import CountingStore, Workload
from nsa_eval._looking import look_at, looks_missing
from nsa_eval.config import EngineSpec, ModelSpec, RunConfig, Variant
from nsa_eval.config.marks import Effect, own_values
from nsa_eval.errors import UserError
from nsa_eval.plan import Job
from nsa_eval.progress import Progress
from nsa_eval.rundir import RunDirectory, write_json
from nsa_eval.store import AuditEvent

_MOST_LENGTHS = 64
"""More lengths than that are no axis."""

if TYPE_CHECKING:
    from nsa_eval._tasks import LoadedTasks
    from nsa_eval.engine import Request
    from nsa_eval.executors import Executor, VariantFacts
    from nsa_eval.store import Conditions
    from nsa_models import Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What serves all variants of a checkpoint."""

    tokenizer: Any
    """PreTrainedTokenizerBase."""
    tasks: LoadedTasks
    fingerprint: Fingerprint
    sources: dict[str, dict[str, str]]
    """Of each task, the hashes of the files that it was made from."""
    fields: dict[str, Any]
    """The checkpoint's config, as far as it is plain."""
    imported: list[AuditEvent]
    """What was decided in reading another trainer's checkpoint."""


def evaluate_checkpoint(
    work: Sequence[tuple[Variant, Sequence[Job]]],
    config: RunConfig,
    *,
    directory: RunDirectory,
    store: CountingStore,
    executor: Executor,
    workload: Workload,
    progress: Progress,
) -> None:
    """Run all tasks of the variants of one checkpoint, and publish a folder for each.

    The tokenizer and the tasks come first: a missing data set or a bad parameter shows before the weights
    are read. They and the weights serve all variants.

    Args:
        work: Variants of one checkpoint, each with its jobs.
        config: The whole run's config.
        directory: Where results go.
        store: Finished responses; asked first.
        executor: Has the rest answered.
        workload: Corrected as sizes become known.
        progress: Told of every stage and response.

    Raises:
        UserError: A task that can't be loaded, a prompt that is too long, a full disk, ...
        ModelLoadError: A checkpoint that can't be loaded, or a field that can't be set.
    """
    import nsa_models
    from nsa_eval._quiet import quiet
    from nsa_eval._sources import task_sources
    from nsa_eval._tasks import load_tasks
    from nsa_eval.executors import lm_fingerprint

    model, jobs = work[0][0].checkpoint, work[0][1]
    with quiet() as heard:
        progress.say(f"{model.name}: preparing tasks")
        tokenizer = None
        if model.lm is None:
            tokenizer = nsa_models.load_tokenizer(
                model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
        if tokenizer and model.chat_template and not getattr(tokenizer, "chat_template", None):
            raise UserError(f"{model.name}: its tokenizer has no chat template: leave chat_template out")
        # Loading refuses files that are too large to be read; then they can be hashed.
        tasks = load_tasks(model, jobs, config)
        sources = {job.task.label: task_sources(job, config.include_path) for job in jobs}
        progress.say(f"{model.name}: loading")
        executor.load(model)
        fields: dict[str, Any] = {}
        notes: tuple[str, ...] = ()
        if model.lm is None:
            notes = nsa_models.import_notes(
                model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
            fields = nsa_models.plain_fields(
                nsa_models.load_config(
                    model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
                )
            )
            fingerprint = nsa_models.fingerprint_of(model.path, revision=model.revision)
        else:
            fingerprint = lm_fingerprint(model)
    for message in (*_doubts(model), *notes, *tasks.notes, *heard.messages):
        progress.note(f"{model.name}: {message}")
    prepared = _Prepared(
        tokenizer=tokenizer,
        tasks=tasks,
        fingerprint=fingerprint,
        sources=sources,
        fields=fields,
        imported=[AuditEvent(kind="imported", detail=note) for note in notes],
    )
    documents = {job.task.label: tasks.documents(job.task) for job in jobs}
    workload.loaded((job for _, own in work for job in own), documents)
    for variant, _ in work:
        _evaluate_variant(
            variant,
            config,
            prepared,
            directory=directory,
            store=store,
            executor=executor,
            workload=workload,
            progress=progress,
        )


def _evaluate_variant(
    variant: Variant,
    config: RunConfig,
    prepared: _Prepared,
    *,
    directory: RunDirectory,
    store: CountingStore,
    executor: Executor,
    workload: Workload,
    progress: Progress,
) -> None:
    from nsa_eval._lm_eval import evaluate_tasks
    from nsa_eval._quiet import quiet
    from nsa_eval._replies import AskedReplies
    from nsa_eval.engine import Engine, ForeignEngine, Naming
    from nsa_eval.executors import LmEvalExecutor

    model, tasks, fingerprint = variant.checkpoint, prepared.tasks, prepared.fingerprint
    labels = {name: spec.label for name, spec in tasks.specs.items()}

    asked = AskedReplies()

    def count(requests: Sequence[Request]) -> None:
        asked.note(requests)
        store.expect(requests)
        workload.built(variant.name, requests, labels)

    with quiet() as heard:
        facts = executor.use(variant)
        progress.say(variant.name)
        naming = Naming(
            context=store_context(variant, facts, fingerprint.total, config),
            task_contexts=tasks.contexts(),
            truncations=tasks.truncations,
            documents=tasks.samples,
            seed=config.seed[2],
        )
        shared: dict[str, Any] = {
            "settings": config.engine,
            "naming": naming,
            "store": store,
            "on_requests": count,
        }
        engine: Engine
        if isinstance(executor, LmEvalExecutor):
            engine = ForeignEngine.around(executor.lm, facts.model, executor.answer, **shared)
        else:
            engine = Engine.over(prepared.tokenizer, facts.model, executor.answer, **shared)
        engine.template_date = model.template_date
        if model.chat_template and model.template_date is None:
            engine.note_clock(model.chat_template)
        results = evaluate_tasks(engine, tasks, model, config)
        asked.describe(results["samples"], store)
        results["config"] |= {
            "model_name": variant.name,
            "model_path": model.path,
            "device": facts.model.device,
            "model_fingerprint": fingerprint.total,
            "model_fingerprints": fingerprint.parts,
            "model_fields": prepared.fields | facts.changes,
            "task_sources": prepared.sources,
            "task_truncation": {
                name: tasks.truncations.get(name, config.engine.truncation) for name in tasks.tasks
            },
            "attention": facts.attention,
            "backend": str(facts.backend),
            "variant": variant.settings,
        }
        weights = (facts.method or {}).get("parameters", {}).get("weights")
        if weights is not None:
            results["config"]["method_weights"] = weights
        events = (*prepared.imported, *tasks.events, *engine.audit, *_task_cuts(results["samples"]))
        audit = [event.model_dump(mode="json") for event in events]
        lengths = {task: _lengths(rows) for task, rows in results["samples"].items()}
        sheet = engine.cost_sheet(conditions_of(facts, config.engine), lengths)
        _stage(results, variant, engine, directory, audit, sheet.model_dump(mode="json"))
    for message in heard.messages:
        progress.note(f"{variant.name}: {message}")
    directory.publish(variant.name)
    if looks_missing(variant, config, directory):
        known = (facts, fingerprint.total)
        look_at(
            variant, config, known, directory=directory, store=store, executor=executor, progress=progress
        )


def _task_cuts(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[AuditEvent]:
    """The prompts that tasks cut by their own protocol, as they left it in their samples' documents."""
    from nsa_eval.results.cuts import cut_by_task

    found: dict[tuple[str, int], AuditEvent] = {}  # a document has a sample for each filter
    for task, rows in samples.items():
        for row in rows:
            cut = cut_by_task(row["doc"]) if isinstance(row.get("doc"), Mapping) else None
            if cut is not None:
                event = AuditEvent(
                    kind="cut_by_task", task=task, doc_id=row["doc_id"], before=cut[0], after=cut[1]
                )
                found.setdefault((task, row["doc_id"]), event)
    return list(found.values())


def _lengths(rows: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """The context length of each document; none where each has one of its own, as LongBench's records."""
    found = {
        row["doc_id"]: row["doc"]["length"]
        for row in rows
        if isinstance(row.get("doc"), Mapping) and type(row["doc"].get("length")) is int
    }
    return found if len(set(found.values())) <= _MOST_LENGTHS else {}


def conditions_of(facts: VariantFacts, engine: EngineSpec) -> Conditions:
    """On what a variant's costs are measured."""
    from nsa_eval.store import Conditions

    model = facts.model
    return Conditions(
        device_name=model.device_name or model.device,
        device=model.device,
        dtype=model.dtype.removeprefix("torch."),
        backend=facts.backend.name,
        batch_size=str(engine.batch_size),
        weights_bytes=model.weights_bytes,
        device_bytes=model.device_bytes,
        cuda_graphs=model.device == "cuda" and engine.cuda_graphs == "auto",
        share_prefixes=engine.share_prefixes,
    )


def store_context(variant: Variant, facts: VariantFacts, fingerprint: str, config: RunConfig) -> str:
    """Everything about a variant and its settings that a response depends on, as one string.

    It holds every key that is marked as able to change a response, and where a key leaves a choice ("auto"),
    what was chosen.
    """
    model = own_values(variant.checkpoint, Effect.RESPONSE)
    return json.dumps(
        {
            "model": model
            | {
                "fingerprint": fingerprint,
                "name": variant.checkpoint.path if variant.checkpoint.lm else None,
                "dtype": facts.model.dtype,
                "device": facts.model.device,
                "backend": dataclasses.asdict(facts.backend),
                "max_length": facts.model.max_length,
                "set": facts.changes,
                "method": facts.method,
            },
            "engine": own_values(config.engine, Effect.RESPONSE),
            "run": own_values(config, Effect.RESPONSE),
        },
        sort_keys=True,
        default=str,
    )


def _doubts(model: ModelSpec) -> list[str]:
    """`simple_evaluate`'s warning and its rule: only a checkpoint's name tells that it wants its template."""
    name = Path(model.path).name.lower()
    if model.chat_template or not any(part in name for part in ("inst", "chat")):
        return []
    return ["seems to be a chat model, but chat_template isn't set: it was asked without its template"]


def _stage(
    results: dict[str, Any],
    variant: Variant,
    engine: Any,  # noqa: ANN401  (Engine)
    directory: RunDirectory,
    audit: list[dict[str, Any]],
    costs: dict[str, Any],
) -> None:
    """Let lm-eval's tracker write its files, and make sure that it did: it only logs what goes wrong."""
    from lm_eval.loggers import EvaluationTracker

    samples = results.pop("samples")
    tracker = EvaluationTracker(output_path=str(directory.staging))
    model = variant.checkpoint
    template = engine.chat_template(model.chat_template) if model.chat_template else None
    tracker.general_config_tracker.log_experiment_args(
        model_source="nsa-eval",
        # The tracker names its folder by `pretrained`.
        model_args={"pretrained": variant.name},
        system_instruction=model.system_instruction,
        chat_template=template,
        fewshot_as_multiturn=True,
    )
    folder = directory.staging / variant.name
    if folder.exists():  # left by a killed run
        for file in folder.iterdir():
            file.unlink()
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
    write_json(folder / "audit.json", audit)
    write_json(folder / "costs.json", costs)
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
