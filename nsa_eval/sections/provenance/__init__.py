"""Where the numbers come from: models, machine, config, command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from nsa_eval.material import Material
from nsa_eval.results import ModelRun
from nsa_eval.sections import Section
from nsa_reports import SectionData


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What was evaluated."""

    name: str
    path: str = ""
    fingerprint: str = ""
    attention: str = ""
    parameters: int | None = None
    dtype: str = ""
    backend: str = ""
    tokenizer: str = ""
    max_length: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    """Anything else worth a row: revision, chat template, a variant's fields, a method's parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Enough to run the same thing again."""

    command: str = ""
    config: str = ""
    """The resolved configuration, as YAML text."""
    seed: int | None = None
    git_commit: str = ""
    machine: Mapping[str, str] = field(default_factory=dict)
    """Label to value: CPU, GPU, memory, operating system."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package to version."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Label to value: run directories, start, duration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is known of the models."""

    label: str
    values: tuple[str | int | None, ...]
    """One per model, in the page's order; empty or None where a model has none."""
    field: str = ""
    """Of `ModelCard`; empty for what is in its `extra`."""

    @property
    def alike(self) -> bool:
        """Whether it is the same of all."""
        return len(set(self.values)) == 1

    @property
    def code(self) -> bool:
        """Whether it is something to copy, not to read."""
        return self.field in ("path", "fingerprint", "tokenizer")


_FIELDS = {
    "path": "Path",
    "fingerprint": "Fingerprint",
    "attention": "Attention",
    "parameters": "Parameters",
    "dtype": "Dtype",
    "backend": "Backend",
    "tokenizer": "Tokenizer",
    "max_length": "Longest context",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance(SectionData):
    """What the section shows."""

    models: tuple[ModelCard, ...]
    """In the page's order."""
    origin: Origin = field(default_factory=Origin)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """Everything that is known of any model."""
        found = [
            Fact(label=label, field=name, values=tuple(getattr(card, name) for card in self.models))
            for name, label in _FIELDS.items()
        ]
        extras = dict.fromkeys(label for card in self.models for label in card.extra)
        found += [
            Fact(label=label, values=tuple(card.extra.get(label, "") for card in self.models))
            for label in extras
        ]
        return tuple(fact for fact in found if any(value not in ("", None) for value in fact.values))


def build(material: Material) -> Provenance:
    """A card per model, and the first run directory's config, command, versions and machine."""
    cards = tuple(_model_card(label, model, material) for label, model in material.models.items())
    return Provenance(models=cards, origin=_origin(material))


def _model_card(label: str, model: ModelRun, material: Material) -> ModelCard:
    """What was evaluated, as far as the run directory says."""
    task = next(iter(model.tasks.values()))
    settings, entry = task.settings, model.config or {}
    extra = {
        "device": settings.get("device"),
        "revision": entry.get("revision") or settings.get("model_revision"),
        "chat template": entry.get("chat_template") or None,
        "weights (sha)": settings.get("model_sha") or None,
        **material.variant(label),
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


def _origin(material: Material) -> Origin:
    """Config, command, versions and machine of the first run directory; all directories by name."""
    env, config = material.env, material.run_config
    task = next(iter(material.first.tasks.values()))
    git = env.get("git") if isinstance(env.get("git"), dict) else {}
    seed = config.get("seed")
    versions = dict(env.get("versions") or {})
    for key in ("lm_eval_version", "transformers_version"):
        if task.context.get(key):
            versions.setdefault(key.removesuffix("_version").replace("_", "-"), task.context[key])
    directories = list(dict.fromkeys(str(model.directory) for model in material.models.values()))
    extra = {
        "run directory": ", ".join(directories),
        "started": env.get("started"),
        "seeds": ", ".join(map(str, seed)) if isinstance(seed, list) else None,
        "uncommitted changes": "yes" if (git or {}).get("changed") else None,
    }
    command = env.get("command")
    return Origin(
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


SECTION = Section(title="Provenance", order=90, build=build)
