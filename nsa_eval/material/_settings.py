"""How a model was run: what its results recorded, and what run.yaml asked for where they say nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nsa_eval.results import ModelRun

# Which checkpoint it is, not how it was run.
_IDENTITY = frozenset({"name", "checkpoint", "path", "revision"})
# Keys of a model's entry that make it a variant of its checkpoint; what is in them goes by its own name.
_VARIANT = ("set", "method", "variant")
# Where a results file records what a setting came to: run.yaml may say "auto".
_RECORDED = {"dtype": "model_dtype", "device": "device", "backend": "backend"}


def settings_of(model: ModelRun) -> dict[str, str]:
    """Every setting of a model's entry by its key, with spaces for underscores, and its variant's."""
    task = next(iter(model.tasks.values()))
    entry = {key: value for key, value in (model.config or {}).items() if key not in _IDENTITY}
    found = {key: value for key, value in entry.items() if key not in _VARIANT}
    for key, recorded in _RECORDED.items():
        if task.settings.get(recorded) not in (None, "", "auto"):
            found[key] = str(task.settings[recorded]).removeprefix("torch.")
    found["max_length"] = task.context.get("max_length") or entry.get("max_length")
    # A run of lm-eval's has no entry; the template itself isn't shown, but two that differ are told apart.
    if "chat_template" not in entry and task.context.get("chat_template_sha"):
        found["chat_template"] = str(task.context["chat_template_sha"])[:8]
    named = {key.replace("_", " "): _text(value) for key, value in found.items()}
    return {**named, **variant_of(model)}


def fields_of(model: ModelRun) -> dict[str, str]:
    """The fields of the checkpoint's config with what the variant set, by name; nothing of an old run."""
    recorded = next(iter(model.tasks.values())).settings.get("model_fields")
    return (
        {str(key): _text(value) for key, value in recorded.items()} if isinstance(recorded, Mapping) else {}
    )


def variant_of(model: ModelRun) -> dict[str, str]:
    """The fields of the model's config that were set, and the parameters of its method, by their names."""
    task = next(iter(model.tasks.values()))
    found: dict[str, str] = {}
    for source in (model.config or {}, task.settings):
        for key in _VARIANT:
            found |= {name: text for name, text in _flat(key, source.get(key)) if text}
    return found


def _flat(key: str, value: object) -> Iterator[tuple[str, str]]:
    """A mapping's own keys, a method's name under "method" and its parameters as "method budget"."""
    if not isinstance(value, Mapping):
        yield key, _text(value)
        return
    for name, inner in value.items():
        if key == "method":
            yield from _flat("method" if name == "name" else f"method {name}", inner)
        else:
            yield from _flat(str(name), inner)


def _text(value: Any) -> str:  # noqa: ANN401 - whatever YAML holds
    """A value as a table shows it; nothing for what is off or was left out."""
    if value is None or value is False or value == "":
        return ""
    if value is True:
        return "yes"
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
