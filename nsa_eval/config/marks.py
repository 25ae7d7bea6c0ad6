"""What a config key can change: the one mark that store, resume, comparison and job ids go by.

A key says it once, in its type: `prefill_chunk: Neutral[int] = 8192`. A key without a mark counts as changing
responses, so a forgotten mark costs time and never a wrong score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

T = TypeVar("T")


class Effect(Enum):
    """What a key can change.

    | | store key | resume check, job id | between two runs |
    |---|---|---|---|
    | RESPONSE | holds it | hold it | forbids a comparison; of a model: noted |
    | REQUEST | the requests themselves | hold it | forbids it, by what was asked |
    | SOURCE | what was read: the weights' fingerprint | hold it | by what was read |
    | NEUTRAL | - | - | noted, if it says how requests are run |
    """

    RESPONSE = "a response to the same request"
    REQUEST = "which requests are made; each carries it itself"
    SOURCE = "where something is read from; what was read stands for it"
    NEUTRAL = "neither: speed, memory, names, tables"


Request = Annotated[T, Effect.REQUEST]
Source = Annotated[T, Effect.SOURCE]
Neutral = Annotated[T, Effect.NEUTRAL]


def effect(field: FieldInfo) -> Effect:
    """The mark of a field; RESPONSE where there is none."""
    return next((mark for mark in field.metadata if isinstance(mark, Effect)), Effect.RESPONSE)


def own_values(section: BaseModel, *effects: Effect) -> dict[str, Any]:
    """The keys of a section that have one of these marks, as plain data; not the sections inside of it."""
    fields = type(section).model_fields.items()
    wanted = {
        name for name, info in fields if effect(info) in effects and _section_in(info.annotation) is None
    }
    return section.model_dump(mode="json", include=wanted)


def own_keys(section: type[BaseModel], *effects: Effect) -> tuple[str, ...]:
    """The names of those keys."""
    fields = section.model_fields.items()
    return tuple(
        name for name, info in fields if effect(info) in effects and _section_in(info.annotation) is None
    )


def without_neutral(section: BaseModel) -> dict[str, Any]:
    """A section as plain data without its neutral keys, those of the sections inside of it too."""
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if effect(field) is not Effect.NEUTRAL:
            found[name] = _plain(getattr(section, name))
    return found | {name: _plain(value) for name, value in (section.model_extra or {}).items()}


def walk(section: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Effect]]:
    """Every key of a section and of the sections inside of it, with its mark.

    A key inside of a neutral section is neutral, whatever its own mark.
    """
    for name, field in section.model_fields.items():
        mark = effect(field)
        inner = _section_in(field.annotation)
        if inner is None:
            yield (*path, name), mark
            continue
        for below, own in walk(inner, (*path, name)):
            yield below, Effect.NEUTRAL if mark is Effect.NEUTRAL else own


def _plain(value: Any) -> Any:  # noqa: ANN401  (a config's value)
    if isinstance(value, BaseModel):
        return without_neutral(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _section_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401  (a type)
    """The section class inside `X`, `list[X]` or `X | None`."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _section_in(part))), None)
