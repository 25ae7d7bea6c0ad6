"""Where a report's numbers come from: models, machine, config, and what was done to prompts."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from nsa_eval.results import ModelRun
from nsa_eval.view._samples import describe_event
from nsa_reports import AuditNote, ModelCard, Provenance

_TITLES = {
    "truncated": "Prompts cut to fit the model's length",
    "double_bos": "Prompts that brought their own beginning-of-sequence token",
    "default_max_length": "Models whose longest length was assumed",
}


def model_card(label: str, model: ModelRun) -> ModelCard:
    """What was evaluated, as far as the run directory says."""
    task = next(iter(model.tasks.values()))
    settings, entry = task.settings, model.config or {}
    extra = {
        "device": settings.get("device"),
        "revision": entry.get("revision") or settings.get("model_revision"),
        "chat template": entry.get("chat_template") or None,
        "weights (sha)": settings.get("model_sha") or None,
    }
    parameters = settings.get("model_num_parameters")
    length = task.context.get("max_length")
    return ModelCard(
        name=label,
        path=str(settings.get("model_path") or entry.get("path") or settings.get("model") or ""),
        fingerprint=str(settings.get("model_fingerprint") or ""),
        attention=str(settings.get("attention") or ""),
        parameters=parameters if isinstance(parameters, int) and parameters > 0 else None,
        dtype=str(settings.get("model_dtype") or entry.get("dtype") or "").removeprefix("torch."),
        backend=str(settings.get("backend") or entry.get("backend") or ""),
        max_length=length if isinstance(length, int) else None,
        extra={key: str(value) for key, value in extra.items() if value not in (None, "")},
    )


def audit_notes(models: Mapping[str, ModelRun]) -> list[AuditNote]:
    """One note per kind of event, "none" included; a note for models whose requests were not recorded."""
    recorded = {label: model for label, model in models.items() if model.run_config is not None}
    notes = []
    if recorded:
        events = [(label, event) for label, model in recorded.items() for event in model.audit]
        kinds = [*_TITLES, *sorted({str(event.get("kind")) for _, event in events} - set(_TITLES))]
        documents = sum(_documents(model) for model in recorded.values())
        for kind in kinds:
            found = [(label, event) for label, event in events if event.get("kind") == kind]
            notes.append(
                AuditNote(
                    title=_TITLES.get(kind, kind.replace("_", " ")),
                    count=len(found),
                    total=len(recorded) if kind == "default_max_length" else documents,
                    details=tuple(_detail(label, event) for label, event in found),
                )
            )
    missing = tuple(label for label in models if label not in recorded)
    if missing:
        title = "Models not run by nsa-eval: cut prompts were not recorded"
        notes.append(AuditNote(title=title, count=len(missing), total=len(models), details=missing))
    return notes


def provenance(models: Sequence[ModelRun]) -> Provenance:
    """Config, command, versions and machine of the first run directory; all directories by name."""
    first = models[0]
    env, config = first.env or {}, first.run_config or {}
    task = next(iter(first.tasks.values()))
    git = env.get("git") if isinstance(env.get("git"), dict) else {}
    seed = config.get("seed")
    versions = dict(env.get("versions") or {})
    for key in ("lm_eval_version", "transformers_version"):
        if task.context.get(key):
            versions.setdefault(key.removesuffix("_version").replace("_", "-"), task.context[key])
    directories = list(dict.fromkeys(str(model.directory) for model in models))
    extra = {
        "run directory": ", ".join(directories),
        "started": env.get("started"),
        "seeds": ", ".join(map(str, seed)) if isinstance(seed, list) else None,
        "uncommitted changes": "yes" if (git or {}).get("changed") else None,
    }
    command = env.get("command")
    return Provenance(
        command=shlex.join(map(str, command)) if isinstance(command, list) else str(command or ""),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
        seed=seed[0] if isinstance(seed, list) and seed else seed if isinstance(seed, int) else None,
        git_commit=str((git or {}).get("commit") or ""),
        machine=_machine(env.get("machine")),
        versions={str(key): str(value) for key, value in versions.items()},
        extra={key: str(value) for key, value in extra.items() if value},
    )


def _machine(machine: object) -> dict[str, str]:
    if not isinstance(machine, dict):
        return {}
    found = {}
    for key, value in machine.items():
        if key == "gpus" and isinstance(value, list):
            found["GPUs"] = ", ".join(_gpu(gpu) for gpu in value) or "none"
        elif key == "memory_gib" and value:
            found["memory"] = f"{value:g} GiB"
        elif value not in (None, "", [], {}):
            found[str(key)] = str(value)
    return found


def _gpu(gpu: object) -> str:
    if not isinstance(gpu, dict):
        return str(gpu)
    memory = f" ({gpu['memory_gib']} GiB)" if gpu.get("memory_gib") else ""
    return f"{gpu.get('name', 'unknown')}{memory}"


def _detail(label: str, event: Mapping[str, Any]) -> str:
    where = f"{event['task']}, document {event.get('doc_id')}" if event.get("task") else ""
    return ": ".join(part for part in (label, where, describe_event(event)) if part)


def _documents(model: ModelRun) -> int:
    return sum(len(next(iter(task.filters.values()), ())) for task in model.tasks.values())
