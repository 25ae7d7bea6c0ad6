"""Which models of a run form one line: a checkpoint, or a method on it, at several values of one
parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nsa_eval.material import Material
from nsa_eval.results import ModelRun

if TYPE_CHECKING:
    from nsa_models.methods import Method

BUDGET = "budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What makes a model of a run what it is."""

    label: str
    checkpoint: str
    """Name of the model entry."""
    method: str
    """A sparse method's name, or nothing."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The method's, and the fields of the checkpoint's config that were set."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """The method's alone, as they were given."""
    attention: str = ""
    """As the checkpoint's config says: full, nsa."""

    @property
    def full(self) -> bool:
        """Whether it is a checkpoint of full attention as it is."""
        return self.attention == "full" and not self.method and not self.parameters

    @property
    def declared(self) -> Method | type[Method] | None:
        """The method, with its declarations; None without one, and where it isn't known any more."""
        if not self.method:
            return None
        from nsa_models.methods import MethodError, MethodShare, method_at, methods  # torch takes seconds

        try:
            found = method_at(self.method, **self.given)
        except (MethodError, TypeError):  # another version's parameters
            return methods().get(self.method)
        return found.declared if isinstance(found, MethodShare) else found

    @property
    def decodes_only(self) -> bool:
        """Whether prompts are read dense."""
        return self.declared is not None and self.declared.phase == "decode"

    @property
    def simulated(self) -> bool:
        """Whether its seconds say nothing about the method: the full cache is kept and masked."""
        return self.declared is not None and self.declared.simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Models that differ in one parameter, or one model alone."""

    name: str
    parameter: str
    """What differs; nothing for a model alone."""
    variants: tuple[Variant, ...]
    reference: str | None
    """The model of full attention that it is held to: the same checkpoint's, else the run's baseline."""

    def value(self, variant: Variant) -> str:
        """A point's value of the parameter, as text."""
        return written(variant.parameters.get(self.parameter, "")) if self.parameter else ""


def sweeps_of(material: Material) -> tuple[Sweep, ...]:
    """The lines of a run, in the order of its models; checkpoints of full attention are none of them.

    Models of one checkpoint and method that differ in one parameter are a line. Where more differ, the budget
    is what is swept, else the parameter of most values, and there is a line for each setting of the others.
    Budgets in tokens and as shares of each prompt are points of one line: both say how much a method reads.
    """
    variants = [variant_of(label, model) for label, model in material.models.items()]
    full = {one.checkpoint: one.label for one in variants if one.full}
    comparison = material.comparison
    baseline = (
        comparison.baseline if comparison is not None and comparison.baseline in full.values() else None
    )
    families: dict[tuple[str, str], list[Variant]] = {}
    for one in variants:
        if not one.full:
            families.setdefault((one.checkpoint, one.method), []).append(one)
    found: list[Sweep] = []
    for (checkpoint, method), members in families.items():
        keys = list(dict.fromkeys(key for one in members for key in one.parameters))
        filled = [_filled(one, keys, material) for one in members]
        varying = {key: {written(one.parameters.get(key, "")) for one in filled} for key in keys}
        varying = {key: values for key, values in varying.items() if len(values) > 1}
        swept = BUDGET if BUDGET in varying else max(varying, key=lambda key: len(varying[key]), default="")
        others = [key for key in varying if key != swept]
        lines: dict[tuple[str, ...], list[Variant]] = {}
        for one in filled:
            setting = [written(one.parameters.get(key, "")) for key in others]
            lines.setdefault(tuple(setting), []).append(one)
        for values, line in lines.items():
            said = [f"{key}={value}" for key, value in zip(others, values, strict=True)]
            head = f"{checkpoint}+{method}" if method else checkpoint
            alone = len(line) == 1
            found.append(
                Sweep(
                    name=line[0].label if alone else ", ".join([head, *said]),
                    parameter="" if alone else swept,
                    variants=tuple(line),
                    reference=full.get(checkpoint, baseline),
                )
            )
    return tuple(found)


def variant_of(label: str, model: ModelRun) -> Variant:
    """What a model's results and its entry in run.yaml say of it."""
    settings = next(iter(model.tasks.values())).settings
    entry = model.config or {}
    recorded = settings.get("variant")
    source: Mapping[str, Any] = recorded if isinstance(recorded, Mapping) else entry
    method, changes = source.get("method"), source.get("set")
    given = dict(method) if isinstance(method, Mapping) else {}
    name = str(given.pop("name", ""))
    fields = dict(changes) if isinstance(changes, Mapping) else {}
    return Variant(
        label=label,
        checkpoint=str(entry.get("checkpoint") or settings.get("model_path") or label),
        method=name,
        parameters={**given, **fields},
        given=given,
        attention=str(settings.get("attention") or ""),
    )


def written(value: object) -> str:
    """A parameter's value as text: 256, 0.9, 0+1."""
    if isinstance(value, list | tuple):
        return "+".join(map(written, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _filled(variant: Variant, keys: Sequence[str], material: Material) -> Variant:
    """With the values of parameters that only others name: a field's own, a method's default."""
    defaults = _defaults(variant)
    fields = material.fields(variant.label)
    found = dict(variant.parameters)
    for key in keys:
        if key not in found and (key in defaults or key in fields):
            found[key] = defaults.get(key, fields.get(key, ""))
    return replace(variant, parameters=found)


def _defaults(variant: Variant) -> dict[str, Any]:
    if variant.declared is None:
        return {}
    fields = dataclasses.fields(variant.declared)
    return {one.name: one.default for one in fields if one.default is not dataclasses.MISSING}
