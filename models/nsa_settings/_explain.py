"""Turn pydantic's errors into one line each, by file and line."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from nsa_settings._source import Source
from nsa_settings._suggest import did_you_mean, nearest
from nsa_settings._yaml import Place

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "path_type": "a path",
}
_TOLD = "told"


def mistakes(told: Mapping[Place, str]) -> ValidationError:
    """What a validator raises that knows where inside of its value a mistake is.

    Args:
        told: What is wrong, as a user reads it, by the place in what the validator was given.
    """
    lines = [
        InitErrorDetails(type=PydanticCustomError(_TOLD, "{text}", {"text": text}), loc=path, input=None)
        for path, text in told.items()
    ]
    return ValidationError.from_exception_data("settings", lines)


def explain(error: ValidationError, source: Source, schema: type[BaseModel]) -> list[str]:
    """One line per mistake, in the order of the schema, each naming the value given and what was expected.

    Args:
        error: What validation found.
        source: Where the settings were written.
        schema: What they were to be.
    """
    lines = []
    for item in error.errors(include_url=False):
        if item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]:
            continue  # pydantic counts a tuple's right entries alone; the wrong ones are told
        loc: Place = tuple(part for part in item["loc"] if part != "[key]")
        lines.append(source.message(loc, _text(item["type"], loc, item, schema)))
    return lines


def as_meant(
    data: Mapping[str, Any], error: ValidationError, source: Source, schema: type[BaseModel]
) -> dict[str, Any] | None:
    """Settings without the mistakes that validation found, so that others can be told in the same round.

    A misspelt key stands under the name that was probably meant; what else is wrong is left out.

    Args:
        data: The settings as read.
        error: What validation found.
        source: Where they were written; learns of the keys that are renamed.
        schema: What they were to be.

    Returns:
        A copy, or None where something is missing, or an entry of a list is wrong as a whole.
    """
    mended: dict[str, Any] = copy.deepcopy(dict(data))
    for item in error.errors(include_url=False):
        *holders, key = item["loc"]
        here: Any = mended
        try:
            for part in holders:
                here = here[part]
        except (KeyError, IndexError, TypeError):
            return None  # left out already, or a place that only pydantic knows
        if not isinstance(here, dict) or key not in here:
            return None
        value = here.pop(key)
        if item["type"] == "extra_forbidden":
            name = nearest(str(key), _known_keys(tuple(holders), schema))
            if name is not None and name not in here:
                here[name] = value
                source.renamed(item["loc"], name)
    return mended


def _text(kind: str, loc: Place, item: Any, schema: type[BaseModel]) -> str:  # noqa: ANN401  (pydantic's ErrorDetails)
    given, context = item["input"], item.get("ctx", {})
    if kind == _TOLD:
        return str(context["text"])
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(loc[-1]), _known_keys(loc[:-1], schema))}"
    if kind == "missing":
        return f"this {'entry' if isinstance(loc[-1], int) else 'key'} is required"
    if kind == "value_error":
        return str(context.get("error", item["msg"]))
    if kind == "too_short":
        name = str(loc[-1])
        what = name.removesuffix("s") if name.endswith("s") else "entry"
        return f"the {'mapping' if isinstance(given, dict) else 'list'} is empty: name at least one {what}"
    if kind == "too_long":
        return f"expected at most {context['max_length']} entries, got {len(given)}"
    if kind == "string_too_short":
        return "the text is empty"
    if kind == "literal_error":
        near = did_you_mean(
            str(given), str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        )
        near = "" if near.startswith("; known") else near
        return f"expected {context['expected']}, got {given!r}{near}"
    if kind in _EXPECTED:
        if isinstance(given, str) and (short := _meant(given, loc, kind, schema)):
            return f"expected {_EXPECTED[kind]}, got {given!r}{short}"
        number = kind in {"int_type", "float_type"} and isinstance(given, str) and _is_number(given)
        hint = " (in quotes it is text)" if number else ""
        return f"expected {_EXPECTED[kind]}, got {_show(given)}{hint}"
    limits = {
        "greater_than": "above",
        "greater_than_equal": "at least",
        "less_than": "below",
        "less_than_equal": "at most",
    }
    for name, word in limits.items():
        if kind == name:
            bound = next(v for k, v in context.items() if k in {"gt", "ge", "lt", "le"})
            return f"expected a value {word} {bound:g}, got {given!r}"
    return f"{item['msg'].lower()}, got {_show(given)}"


def _meant(given: str, path: Place, kind: str, schema: type[BaseModel]) -> str:
    """What a text in place of a section, or of a list of them, was probably to be."""
    section = _section_at(path, schema)
    main = getattr(section, "main_key", "")
    if not main or kind not in {"model_type", "model_attributes_type", "list_type", "tuple_type"}:
        return ""
    key, colon, rest = given.partition(":")
    if colon and rest and key in section.model_fields:
        return f"; put a space behind {key}:"
    entry = f"{{{main}: {given}}}"
    return f"; write {entry if kind.startswith('model') else f'[{entry}]'}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else repr(value)


def _known_keys(path: Place, schema: type[BaseModel]) -> list[str]:
    """The keys of the section that `path` leads to."""
    section = _section_at(path, schema)
    return list(section.model_fields) if section is not None else []


def _section_at(path: Place, schema: type[BaseModel]) -> Any:  # noqa: ANN401  (a class of sections, or None)
    """The section that `path` leads to, or a list of which."""
    model: Any = schema
    for part in path:
        if isinstance(part, int):
            continue
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or part not in model.model_fields:
            return None
        model = _section(model.model_fields[part].annotation)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _section(annotation: Any) -> Any:  # noqa: ANN401  (a type)
    """The section class inside `list[ModelSpec]`, `tuple[Stage, ...]` or `X | None`."""
    if typing.get_origin(annotation) in {list, tuple, typing.Union, types.UnionType}:
        return next((a for a in typing.get_args(annotation) if a is not type(None)), None)
    return annotation
