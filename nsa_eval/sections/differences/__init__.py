"""What differs between the models of a report, but for their checkpoints: a row per setting, or per model."""

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

    def of(self, model: int) -> tuple[tuple[str, str], ...]:
        """Names and values of the settings that one model has, by its place on the page: its method first.

        What a method's parameters belong to needs no saying then.
        """
        own = sorted(self.settings, key=lambda row: row.name != "method")
        named = ((row.name.removeprefix("method "), row.values[model]) for row in own)
        return tuple((name, value) for name, value in named if value)


def build(material: Material) -> Differences | None:
    """The settings that are not alike for all models; None where only names and checkpoints differ."""
    by_model = [material.settings(label) for label in material.models]
    fields = [material.fields(label) for label in material.models]
    # Of models of one type every field of the config that differs is told; of two types nearly all would.
    if len({field.get("model_type") for field in fields}) == 1:
        by_model = [{**settings, **own} for settings, own in zip(by_model, fields, strict=True)]
    else:
        by_model = [
            {**settings, "model type": own.get("model_type", "")}
            for settings, own in zip(by_model, fields, strict=True)
        ]
    dense = [own.get("attention") == "full" for own in fields]
    differing = []
    for name in dict.fromkeys(name for settings in by_model for name in settings):
        # Full attention reads none of NSA's fields; twins' configs hold them all the same.
        unread = dense if name.startswith("nsa_") else [False] * len(dense)
        values = tuple("" if out else own.get(name, "") for out, own in zip(unread, by_model, strict=True))
        if len({value for out, value in zip(unread, values, strict=True) if not out}) > 1:
            differing.append(Setting(name=name, values=values))
    return Differences(settings=tuple(differing)) if differing else None


SECTION = Section(title="What differs", order=10, build=build)
