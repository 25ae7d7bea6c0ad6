"""Where a score comes from: whose protocol, which data by checksum, and what was cut off its prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nsa_eval.results._types import ModelRun, TaskResult

_DIGITS = 16
"""Hexadecimal digits of a hash in a table, as data sets are named by."""
_OF_LM_EVAL = "lm_eval/tasks/"


class Origin(BaseModel):
    """What a reader of a score has to know of it beside n."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str = ""
    """Whose definition it follows: the task's `metadata.protocol`; lm-eval for its own tasks."""
    data: str = ""
    """The data set and its checksum; where the results name none, that of the documents that were asked."""
    truncation: str = ""
    """What became of prompts that were too long, and of how many."""


def origin_of(models: Mapping[str, ModelRun], name: str) -> Origin:
    """Where the scores of a task or group come from.

    Args:
        models: By label; where they differ, each is named.
        name: A task or group of theirs.
    """
    found = {label: _origin(model, name) for label, model in models.items()}
    kept = {label: one for label, one in found.items() if one is not None}
    return Origin(
        protocol=_joined({label: one.protocol for label, one in kept.items()}),
        data=_joined({label: one.data for label, one in kept.items()}),
        truncation=_joined({label: one.truncation for label, one in kept.items()}),
    )


def _joined(by_label: Mapping[str, str]) -> str:
    if len(set(by_label.values())) < 2:
        return next(iter(by_label.values()), "")
    return "; ".join(f"{label}: {text or 'unknown'}" for label, text in by_label.items())


def _origin(model: ModelRun, name: str) -> Origin | None:
    names = model.groups[name].tasks if name in model.groups else (name,)
    tasks = [model.tasks[task] for task in names if task in model.tasks]
    if not tasks:
        return None
    data = _distinct(_data(task) for task in tasks)
    documents = _documents(tasks)
    if len(data) > 1:
        data = [f"{len(data)} data sets"]
    shown = data[0] if len(tasks) == 1 or not data else f"{data[0]}, documents {documents}"
    return Origin(
        protocol=" / ".join(_distinct(_protocol(task) for task in tasks)),
        data=shown or f"documents {documents}",
        truncation=_truncation(model, tasks),
    )


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _metadata(task: TaskResult) -> Mapping[str, Any]:
    metadata = task.config.get("metadata")
    return metadata if isinstance(metadata, Mapping) else {}


def _protocol(task: TaskResult) -> str:
    metadata = _metadata(task)
    named = metadata.get("protocol")
    if named:
        return str(named)
    source = str(metadata.get("config_source") or "").replace("\\", "/")
    return "lm-eval" if _OF_LM_EVAL in source else ""


def _data(task: TaskResult) -> str:
    """The data set by its hash; else by its name and the documents' hash."""
    hashes = _distinct(
        str(value)
        for key, value in _metadata(task).items()
        if key.endswith("_hash") and isinstance(value, str)
    )
    if hashes:
        return " ".join(hashes)
    path, name = task.config.get("dataset_path"), task.config.get("dataset_name")
    options = task.config.get("dataset_kwargs")
    files = options.get("data_files") if isinstance(options, Mapping) else None
    documents = f"documents {_documents([task])}"
    if files:
        listed = (
            files.values() if isinstance(files, Mapping) else files if isinstance(files, list) else [files]
        )
        return f"{' '.join(Path(str(file)).name for file in listed)}, {documents}"
    if not path:
        return documents
    return f"{path}{f' ({name})' if name else ''}, {documents}"


def _documents(tasks: Iterable[TaskResult]) -> str:
    """A checksum of the documents that were asked, whatever their order."""
    hashes = {sample.doc_hash for task in tasks for sample in next(iter(task.filters.values()), ())}
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()[:_DIGITS]


def _truncation(model: ModelRun, tasks: list[TaskResult]) -> str:
    """The policy and how many prompts it cut: the engine's cuts by the audit, a task's own by its samples."""
    policies = _distinct(_policy(model, task) for task in tasks)
    names = {task.name for task in tasks}
    samples = [(task.name, one) for task in tasks for one in next(iter(task.filters.values()), ())]
    cut = {
        (str(event.get("task")), str(event.get("doc_id")))
        for event in model.audit
        if event.get("kind") == "truncated" and event.get("task") in names
    } | {(name, str(sample.doc_id)) for name, sample in samples if sample.cut}
    if not policies and not cut:
        return "cuts not recorded"
    if policies == ["error"]:
        own = "by the task" if cut else ""
    else:
        own = " / ".join(policy for policy in policies if policy != "error") or "by the task"
    if not own:
        return "nothing cut"
    counted = f"{len(cut):,} of {len(samples):,}" if cut else "nothing"
    return f"{own}: {counted} cut"


def _policy(model: ModelRun, task: TaskResult) -> str:
    """What the results say, else what run.yaml asked for."""
    by_task = task.settings.get("task_truncation")
    named = _metadata(task).get("truncation") or (
        by_task.get(task.name) if isinstance(by_task, Mapping) else None
    )
    if named:
        return str(named)
    engine = (model.run_config or {}).get("engine")
    asked = engine.get("truncation") if isinstance(engine, Mapping) else None
    return str(asked or "")
