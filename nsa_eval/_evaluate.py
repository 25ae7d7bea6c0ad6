"""The variants of one checkpoint: have their requests answered, let lm-eval score them, publish the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsa_eval._conditions import conditions_of, store_context
from nsa_eval._counting import CountingStore, Workload
from nsa_eval._looking import look_at, looks_missing
from nsa_eval._ongoing import OngoingRun
from nsa_eval._staging import stage
from nsa_eval.config import ModelSpec, Variant
from nsa_eval.errors import UserError
from nsa_eval.plan import Job
from nsa_eval.store import AuditEvent

_MOST_LENGTHS = 64
"""More lengths than that are no axis."""

if TYPE_CHECKING:
    from nsa_eval._tasks import LoadedTasks
    from nsa_eval.engine import Engine, Request
    from nsa_eval.executors import Executor, VariantFacts
    from nsa_models import Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """What identifies a checkpoint, and what its files say of it."""

    fingerprint: Fingerprint
    fields: Mapping[str, Any]
    """The checkpoint's config, as far as it is plain."""
    notes: tuple[str, ...]
    """What was decided in reading another trainer's checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What serves all variants of a checkpoint."""

    tokenizer: Any
    """PreTrainedTokenizerBase."""
    tasks: LoadedTasks
    sources: dict[str, dict[str, str]]
    """Of each task, the hashes of the files that it was made from."""
    weights: _Weights


def evaluate_checkpoint(
    variants: Sequence[Variant],
    ongoing: OngoingRun,
    *,
    store: CountingStore,
    executor: Executor,
    workload: Workload,
) -> None:
    """Run all tasks of the variants of one checkpoint, and publish a folder for each.

    The tokenizer and the tasks come first: a missing data set or a bad parameter shows before the weights
    are read. They and the weights serve all variants.

    Args:
        variants: Of one checkpoint; each has the same tasks.
        ongoing: The run that they belong to.
        store: Finished responses; asked first.
        executor: Has the rest answered.
        workload: Corrected as sizes become known.

    Raises:
        UserError: A task that can't be loaded, a prompt that is too long, a full disk, ...
        ModelLoadError: A checkpoint that can't be loaded, or a field that can't be set.
    """
    jobs = {variant.name: ongoing.plan.of(variant.name) for variant in variants}
    of_first = jobs[variants[0].name]
    prepared = _prepare(variants[0].checkpoint, of_first, ongoing, executor)
    documents = {job.task.label: prepared.tasks.documents(job.task) for job in of_first}
    workload.loaded((job for own in jobs.values() for job in own), documents)
    for variant in variants:
        facts = _evaluate_variant(
            variant, ongoing, prepared, store=store, executor=executor, workload=workload
        )
        if looks_missing(variant, ongoing):
            known = (facts, prepared.weights.fingerprint.total)
            look_at(variant, known, ongoing, store=store, executor=executor)


def _prepare(model: ModelSpec, jobs: Sequence[Job], ongoing: OngoingRun, executor: Executor) -> _Prepared:
    """Load tokenizer, tasks and weights, in this order, and note what is doubtful about them."""
    from nsa_eval._quiet import quiet
    from nsa_eval._sources import task_sources
    from nsa_eval._tasks import load_tasks

    config, progress = ongoing.config, ongoing.progress
    with quiet() as heard:
        progress.say(f"{model.name}: preparing tasks")
        tokenizer = _tokenizer_of(model) if model.lm is None else None
        # Loading refuses files that are too large to be read; then they can be hashed.
        tasks = load_tasks(model, jobs, config)
        sources = {job.task.label: task_sources(job, config.include_path) for job in jobs}
        progress.say(f"{model.name}: loading")
        executor.load(model)
        weights = _weights_of(model)
    for message in (*_doubts(model), *weights.notes, *tasks.notes, *heard.messages):
        progress.note(f"{model.name}: {message}")
    return _Prepared(tokenizer=tokenizer, tasks=tasks, sources=sources, weights=weights)


def _tokenizer_of(model: ModelSpec) -> Any:  # noqa: ANN401  (PreTrainedTokenizerBase)
    import nsa_models

    tokenizer = nsa_models.load_tokenizer(model.path, **model.source)
    if model.chat_template and not getattr(tokenizer, "chat_template", None):
        raise UserError(f"{model.name}: its tokenizer has no chat template: leave chat_template out")
    return tokenizer


def _weights_of(model: ModelSpec) -> _Weights:
    import nsa_models
    from nsa_eval.executors import lm_fingerprint

    if model.lm is not None:
        return _Weights(fingerprint=lm_fingerprint(model), fields={}, notes=())
    return _Weights(
        notes=nsa_models.import_notes(model.path, **model.source),
        fields=nsa_models.plain_fields(nsa_models.load_config(model.path, **model.source)),
        fingerprint=nsa_models.fingerprint_of(model.path, revision=model.revision),
    )


def _doubts(model: ModelSpec) -> list[str]:
    """`simple_evaluate`'s warning and its rule: only a checkpoint's name tells that it wants its template."""
    name = Path(model.path).name.lower()
    if model.chat_template or not any(part in name for part in ("inst", "chat")):
        return []
    return ["seems to be a chat model, but chat_template isn't set: it was asked without its template"]


def _evaluate_variant(
    variant: Variant,
    ongoing: OngoingRun,
    prepared: _Prepared,
    *,
    store: CountingStore,
    executor: Executor,
    workload: Workload,
) -> VariantFacts:
    """Become a variant, ask it everything, and publish its files; what it was found to be."""
    from nsa_eval._lm_eval import evaluate_tasks
    from nsa_eval._quiet import quiet
    from nsa_eval._replies import AskedReplies

    config, tasks = ongoing.config, prepared.tasks
    labels = {name: spec.label for name, spec in tasks.specs.items()}
    asked = AskedReplies()

    def count(requests: Sequence[Request]) -> None:
        asked.note(requests)
        store.expect(requests)
        workload.built(variant.name, requests, labels)

    with quiet() as heard:
        facts = executor.use(variant)
        ongoing.progress.say(variant.name)
        engine = _engine_of(
            variant, facts, ongoing, prepared, store=store, executor=executor, on_requests=count
        )
        results = evaluate_tasks(engine, tasks, variant.checkpoint, config)
        asked.describe(results["samples"], store)
        results["config"] |= _recorded(variant, facts, ongoing, prepared)
        lengths = {task: _lengths(rows) for task, rows in results["samples"].items()}
        sheet = engine.cost_sheet(conditions_of(facts, config.engine), lengths)
        events = (
            *(AuditEvent(kind="imported", detail=note) for note in prepared.weights.notes),
            *tasks.events,
            *engine.audit,
            *_task_cuts(results["samples"]),
        )
        stage(
            results,
            variant,
            engine,
            ongoing.directory,
            audit=[event.model_dump(mode="json") for event in events],
            costs=sheet.model_dump(mode="json"),
        )
    for message in heard.messages:
        ongoing.progress.note(f"{variant.name}: {message}")
    ongoing.directory.publish(variant.name)
    return facts


def _engine_of(
    variant: Variant,
    facts: VariantFacts,
    ongoing: OngoingRun,
    prepared: _Prepared,
    *,
    store: CountingStore,
    executor: Executor,
    on_requests: Callable[[Sequence[Request]], None],
) -> Engine:
    """The lm-eval model that asks the store, then the executor."""
    from nsa_eval.engine import Engine, ForeignEngine, Naming
    from nsa_eval.executors import LmEvalExecutor

    model, config, tasks = variant.checkpoint, ongoing.config, prepared.tasks
    naming = Naming(
        context=store_context(variant, facts, prepared.weights.fingerprint.total, config),
        task_contexts=tasks.contexts(),
        truncations=tasks.truncations,
        documents=tasks.samples,
        seed=config.seed[2],
    )
    shared: dict[str, Any] = {
        "settings": config.engine,
        "naming": naming,
        "store": store,
        "on_requests": on_requests,
    }
    engine: Engine
    if isinstance(executor, LmEvalExecutor):
        engine = ForeignEngine.around(executor.lm, facts.model, executor.answer, **shared)
    else:
        engine = Engine.over(prepared.tokenizer, facts.model, executor.answer, **shared)
    engine.template_date = model.template_date
    if model.chat_template and model.template_date is None:
        engine.note_clock(model.chat_template)
    return engine


def _recorded(
    variant: Variant, facts: VariantFacts, ongoing: OngoingRun, prepared: _Prepared
) -> dict[str, Any]:
    """What a results file's `config` says beyond lm-eval's own keys: which weights, tasks and attention."""
    tasks, fingerprint = prepared.tasks, prepared.weights.fingerprint
    record = {
        "model_name": variant.name,
        "model_path": variant.checkpoint.path,
        "device": facts.model.device,
        "model_fingerprint": fingerprint.total,
        "model_fingerprints": fingerprint.parts,
        "model_fields": {**prepared.weights.fields, **facts.changes},
        "task_sources": prepared.sources,
        "task_truncation": {
            name: tasks.truncations.get(name, ongoing.config.engine.truncation) for name in tasks.tasks
        },
        "attention": facts.attention,
        "backend": str(facts.backend),
        "variant": variant.settings,
    }
    method_weights = (facts.method or {}).get("parameters", {}).get("weights")
    return record if method_weights is None else record | {"method_weights": method_weights}


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
