"""What differs between the models of a report, but for their checkpoints: a row per setting."""

from __future__ import annotations

from dataclasses import dataclass

from nsa_eval.material import Material
from nsa_eval.sections import Section
from nsa_reports import SectionData


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting in which the models differ."""

    name: str
    values: tuple[str, ...]
    """One per model, in the page's order; empty where a model has no such setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences(SectionData):
    """What the section shows."""

    settings: tuple[Setting, ...]


def build(material: Material) -> Differences | None:
    """The settings that are not alike for all models; None where only names and checkpoints differ."""
    configs = [material.config(label) for label in material.models]
    # Configs of other architectures differ in most fields, which says nothing about how they were run.
    alike = len({config.get("model_type") for config in configs}) == 1
    by_model = [
        {**material.settings(label), **(config if alike else {})}
        for label, config in zip(material.models, configs, strict=True)
    ]
    names = dict.fromkeys(name for settings in by_model for name in settings)
    rows = [
        Setting(name=name, values=tuple(settings.get(name, "") for settings in by_model)) for name in names
    ]
    differing = tuple(row for row in rows if len(set(row.values)) > 1)
    return Differences(settings=differing) if differing else None


SECTION = Section(title="What differs", order=10, build=build)
