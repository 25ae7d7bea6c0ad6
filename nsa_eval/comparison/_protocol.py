"""Were two models asked the same thing in the same way? If not: how do they differ?

Only what can change a score forbids a comparison: tasks, documents, prompts, answers, task configuration,
generation settings, truncation, limit, and a seed where it acts. What a different machine or a faster
setting changes (batch size, device, dtype, backend, library versions) is noted.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nsa_eval.audit import comparison_notes
from nsa_eval.comparison._documents import document_mismatches
from nsa_eval.comparison._mismatch import Mismatch, contrast, shown
from nsa_eval.config import EngineSpec, ModelSpec, RunConfig
from nsa_eval.config.marks import Effect, own_keys
from nsa_eval.results import ModelRun, TaskResult

# Which model it was, not how it was asked: task_spec and lm-eval's simple_evaluate put these into a task's
# metadata.
_MODEL_KEYS = frozenset(
    {
        *("pretrained", "tokenizer", "tokenizer_backend", "model", "path", "peft", "delta", "revision"),
        *("dtype", "device", "device_map", "backend", "batch_size", "max_batch_size", "parallelize"),
        *("trust_remote_code", "attn_implementation", "max_length", "window"),
    }
)
# Compared on their own lines, so not again as part of the configuration.
_OWN_LINE = frozenset({"num_fewshot", "generation_kwargs"})
_SETTINGS = ("limit", "gen_kwargs")
# Documents that a seed made, or put in order, are compared by their hashes.
_SAMPLING_SEEDS = ("random_seed", "numpy_seed", "torch_seed")
_FEWSHOT_SEEDS = ("fewshot_seed",)
_NOTED_SETTINGS = ("device", "batch_size", "model_dtype")
_NOTED_CONTEXT = ("max_length", "lm_eval_version", "transformers_version")
# What a config's own marks say. Of a model, keys that can change a response are part of what is compared.
_NOTED_MODEL = own_keys(ModelSpec, Effect.RESPONSE)
_NOTED_ENGINE = own_keys(EngineSpec, Effect.NEUTRAL)
_FORBIDDING_ENGINE = own_keys(EngineSpec, Effect.RESPONSE, Effect.REQUEST)
# Seeds count where they act: `_acting_seeds`.
_FORBIDDING_RUN = tuple(key for key in own_keys(RunConfig, Effect.RESPONSE, Effect.REQUEST) if key != "seed")
_TRUNCATION = "metadata.truncation"
_CAUSES = {"metadata.apply_chat_template": ("chat_template",), _TRUNCATION: ("truncation",)}
_LABELS = {"truncation": "truncation policy"}
ALLOWABLE = ("chat_template", "system_instruction", "truncation")
"""What two models may differ in on purpose: an ablation of how they are asked, on the same documents."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def mismatches(
    a: ModelRun, b: ModelRun, names: tuple[str, str], tasks: Sequence[str] | None
) -> list[Mismatch]:
    """Every difference that forbids comparing `a` with `b`, a line each.

    Args:
        a: One model.
        b: The other.
        names: How to call them.
        tasks: Only these tasks count; None for all.
    """
    found: list[Mismatch] = []
    left = [task for task in a.tasks if tasks is None or task in tasks]
    right = [task for task in b.tasks if tasks is None or task in tasks]
    for name, only in ((names[0], set(left) - set(right)), (names[1], set(right) - set(left))):
        if only:
            found.append(Mismatch.of(f"tasks only in {name}: {', '.join(sorted(only))}"))
    for task in left:
        if task in b.tasks:
            found += [line.within(task) for line in _task_mismatches(a, b, task, names)]
    found += _run_mismatches(a, b, names)
    # A setting that differs shows up once for every task: one line is enough.
    return list(dict.fromkeys(found))


def notes(a: ModelRun, b: ModelRun, names: tuple[str, str], tasks: Iterable[str]) -> list[str]:
    """Differences between `a` and `b` that don't forbid a comparison, and what their audits recorded."""
    found: list[str] = []
    for task in tasks:
        one, two = a.tasks[task], b.tasks[task]
        for keys, left, right in (
            (_NOTED_SETTINGS, one.settings, two.settings),
            (_NOTED_CONTEXT, one.context, two.context),
        ):
            found += [contrast(key, left[key], right[key], names) for key in _changed(left, right, keys)]
    left_model, right_model = a.config or {}, b.config or {}
    found += [
        contrast(key, left_model.get(key), right_model.get(key), names)
        for key in _NOTED_MODEL
        if left_model and right_model and left_model.get(key) != right_model.get(key)
    ]
    left_engine, right_engine = _engine(a), _engine(b)
    found += [
        contrast(f"engine.{key}", left_engine[key], right_engine[key], names)
        for key in _changed(left_engine, right_engine, _NOTED_ENGINE)
    ]
    if not _cut(a) and not _cut(b):
        found += [
            f"{contrast('truncation policy', left_engine[key], right_engine[key], names)}; nothing was cut"
            for key in _changed(left_engine, right_engine, ("truncation",))
        ]
    for model, name in ((a, names[0]), (b, names[1])):
        if "truncation" not in _engine(model):
            found.append(f"{name}: not written by nsa-eval, so cut prompts were not recorded")
        found += comparison_notes(name, model.audit)
    return list(dict.fromkeys(found))


def _task_mismatches(a: ModelRun, b: ModelRun, task: str, names: tuple[str, str]) -> list[Mismatch]:
    one, two = a.tasks[task], b.tasks[task]
    found: list[Mismatch] = []
    if one.version != two.version:
        found.append(Mismatch.of(contrast("task version", one.version, two.version, names)))
    if one.num_fewshot != two.num_fewshot:
        found.append(Mismatch.of(contrast("few-shot examples", one.num_fewshot, two.num_fewshot, names)))
    left, right = _comparable(one), _comparable(two)
    for key in sorted(set(left) | set(right)):
        if left.get(key) == right.get(key) or (
            key == _TRUNCATION and not _cut(a, task) and not _cut(b, task)
        ):
            continue
        causes = _CAUSES.get(key, ())
        found.append(
            Mismatch.of(contrast(f"task config {key}", left.get(key), right.get(key), names), *causes)
        )
    kwargs = [result.config.get("generation_kwargs") for result in (one, two)]
    if _canonical(kwargs[0]) != _canonical(kwargs[1]):
        found.append(Mismatch.of(contrast("generation settings", kwargs[0], kwargs[1], names)))
    for key in _changed(one.settings, two.settings, (*_SETTINGS, *_acting_seeds(one, two))):
        found.append(Mismatch.of(contrast(key, one.settings[key], two.settings[key], names)))
    if set(one.filters) != set(two.filters):
        found.append(Mismatch.of(contrast("filters", sorted(one.filters), sorted(two.filters), names)))
    for filter_name in sorted(set(one.filters) & set(two.filters)):
        pair = (one.filters[filter_name], two.filters[filter_name])
        metrics = [set().union(*(sample.metrics for sample in samples)) for samples in pair]
        if metrics[0] != metrics[1]:
            found.append(Mismatch.of(contrast("metrics", sorted(metrics[0]), sorted(metrics[1]), names)))
        documents = document_mismatches(*pair, names, one, two)
        clocks = [name for name, model in zip(names, (a, b), strict=True) if _prints_date(model)]
        if clocks:
            whose = " and of ".join(clocks)
            why = f"; the chat template of {whose} prints the day's date (template_date holds it)"
            documents = [
                Mismatch.of(f"{line}{why}", *line.causes) if line.startswith("prompts differ") else line
                for line in documents
            ]
        found += [line for line in documents if line not in found]
    found += _cut_mismatches(a, b, task, names)
    return found


def _run_mismatches(a: ModelRun, b: ModelRun, names: tuple[str, str]) -> list[Mismatch]:
    """What run.yaml says that lm-eval's files don't, where both have one."""
    if a.run_config is None or b.run_config is None:
        return []
    found = [Mismatch.of(contrast(key, a.run_config[key], b.run_config[key], names))
             for key in _changed(a.run_config, b.run_config, _FORBIDDING_RUN)]  # fmt: skip
    left, right = _engine(a), _engine(b)
    return found + [
        Mismatch.of(
            contrast(_LABELS.get(key, f"engine.{key}"), left.get(key), right.get(key), names),
            *(("truncation",) if key == "truncation" else ()),
        )
        for key in _FORBIDDING_ENGINE
        # A policy for prompts that are too long makes no difference where none was.
        if left.get(key) != right.get(key) and (key != "truncation" or _cut(a) or _cut(b))
    ]


def _acting_seeds(*results: TaskResult) -> tuple[str, ...]:
    """The seeds that can change a reply: of drawn replies, and of the choice of few-shot examples."""
    drawn = any(_is_drawn(result) for result in results)
    shown = any(result.num_fewshot for result in results)
    return (_SAMPLING_SEEDS if drawn else ()) + (_FEWSHOT_SEEDS if shown else ())


def _is_drawn(result: TaskResult) -> bool:
    """Whether replies are sampled, by the requests' own settings and lm-eval's rule for them."""
    texts = {settings for samples in result.filters.values() for s in samples for settings in s.settings}
    requests = [json.loads(text) for text in texts]
    # normalize_gen_kwargs: where do_sample isn't said, a temperature says it.
    return any(r.get("do_sample", float(r.get("temperature") or 0) > 0) for r in requests)


def _cut(model: ModelRun, task: str | None = None) -> bool:
    """Whether a prompt was cut, of one task or of any; what lm-eval cuts by itself it doesn't record."""
    return any(
        event.get("kind") == "truncated" and task in (None, event.get("task")) for event in model.audit
    )


def _prints_date(model: ModelRun) -> bool:
    return any(event.get("kind") == "clock" for event in model.audit)


def _cut_mismatches(a: ModelRun, b: ModelRun, task: str, names: tuple[str, str]) -> list[Mismatch]:
    """Prompts that one model saw whole and the other cut, or cut to another length."""
    cuts = [
        {
            str(event.get("doc_id")): event.get("after")
            for event in model.audit
            if event.get("kind") == "truncated" and event.get("task") == task
        }
        for model in (a, b)
    ]
    if cuts[0] == cuts[1]:
        return []
    parts = [
        f"{len(cut)} documents of {name} (max_length {shown(model.tasks[task].context.get('max_length'))})"
        for cut, name, model in zip(cuts, names, (a, b), strict=True)
    ]
    return [Mismatch.of(f"prompts were cut differently: {', '.join(parts)}", "truncation")]


def _comparable(result: TaskResult) -> dict[str, Any]:
    """The task's configuration without what names the model, flattened one level into its metadata."""
    config = {
        key: value for key, value in result.config.items() if key not in _OWN_LINE and not _is_off(value)
    }
    metadata = config.pop("metadata", None) or {}
    arguments = result.settings.get("model_args")
    if isinstance(arguments, str):
        arguments = dict(part.partition("=")[::2] for part in arguments.split(","))
    # Where lm-eval read the task's YAML: what it says is compared itself.
    skipped = {*_MODEL_KEYS, *(arguments or ()), "version", "config_source"}
    if isinstance(metadata, Mapping):
        skipped |= _named_by_content(metadata)
    for key, value in metadata.items() if isinstance(metadata, Mapping) else ():
        if key not in skipped and not _is_off(value):
            config[f"metadata.{key}"] = value
    return {key: _canonical(value) for key, value in config.items()}


def _named_by_content(metadata: Mapping[str, Any]) -> set[str]:
    """Parameters beside whose path the content's hash stands: `SCHEME:PATH` and `SCHEME_root`."""
    names = [key.removesuffix("_hash") for key in metadata if key.endswith("_hash")]
    schemes = tuple(f"{name}:" for name in names)
    return {f"{name}_root" for name in names} | {
        key
        for key, value in metadata.items()
        if isinstance(value, str) and value.startswith(schemes) and not key.endswith("_hash")
    }


def _canonical(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Text to compare by: key order, 8 or 8.0, and the memory address of a function don't count."""
    return _ADDRESS.sub("", json.dumps(_whole(value), sort_keys=True, ensure_ascii=False, default=str))


def _whole(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list | tuple) else value


def _is_off(value: object) -> bool:
    """What front ends write for a setting that nobody gave: none, false, an empty list or mapping."""
    return value is None or value is False or (isinstance(value, list | dict | str) and not value)


def _changed(a: Mapping[str, Any], b: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    return [
        key
        for key in keys
        if key in a
        and key in b
        and not (_is_off(a[key]) and _is_off(b[key]))
        and _canonical(a[key]) != _canonical(b[key])
    ]


def _engine(model: ModelRun) -> dict[str, Any]:
    engine = (model.run_config or {}).get("engine")
    return dict(engine) if isinstance(engine, Mapping) else {}
