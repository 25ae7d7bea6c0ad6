"""Turn pydantic's errors into one line each, by file and line."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from nsa_eval._suggest import did_you_mean
from nsa_eval.config._source import Source
from nsa_eval.config._yaml import Path_
from nsa_eval.config.schema import RunConfig

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}


def explain(error: ValidationError, source: Source) -> list[str]:
    """One line per mistake, in the order of the file, each naming the value given and what was expected."""
    lines = []
    for item in error.errors(include_url=False):
        loc: Path_ = tuple(item["loc"])
        lines.append(source.message(loc, _text(item["type"], loc, item)))
    return lines


def _text(kind: str, loc: Path_, item: Any) -> str:  # noqa: ANN401  (pydantic's ErrorDetails)
    given, context = item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(loc[-1]), _known_keys(loc[:-1]))}"
    if kind == "missing":
        return "this key is required"
    if kind == "value_error":
        return str(context.get("error", item["msg"]))
    if kind == "too_short":
        what = {"models": "model", "tasks": "task"}.get(str(loc[-1]), "entry")
        return f"the list is empty: name at least one {what}"
    if kind == "string_too_short":
        return "the text is empty"
    if kind == "literal_error":
        near = did_you_mean(
            str(given), str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        )
        near = "" if near.startswith("; known") else near
        return f"expected {context['expected']}, got {given!r}{near}"
    if kind in _EXPECTED:
        hint = (
            " (in quotes it is text)" if kind in {"int_type", "float_type"} and isinstance(given, str) else ""
        )
        if kind == "bool_type" and isinstance(given, str):
            hint = ""
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


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else repr(value)


def _known_keys(path: Path_) -> list[str]:
    """The keys of the section that `path` leads to."""
    model: Any = RunConfig
    for part in path:
        if isinstance(part, int):
            continue
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or part not in model.model_fields:
            return []
        model = _section(model.model_fields[part].annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _section(annotation: Any) -> Any:  # noqa: ANN401  (a type)
    """The section class inside `list[ModelSpec]` or `X | None`."""
    if typing.get_origin(annotation) in {list, typing.Union, types.UnionType}:
        return next((a for a in typing.get_args(annotation) if a is not type(None)), None)
    return annotation
