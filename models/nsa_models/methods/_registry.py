"""Finding methods by name, and reading them from a command line or a config."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

import nsa_models.methods as package
from nsa_models.methods._base import Budgeted, Method, MethodError, field_types

_TOKENS = re.compile(r"(\d+)\s*([km]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}


@cache
def methods() -> Mapping[str, type[Method]]:
    """All methods by name: every public module of this package defines one.

    Raises:
        MethodError: A module that doesn't define exactly one, or two of one name.
    """
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        own = [
            value
            for value in vars(loaded).values()
            if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == loaded.__name__
        ]
        if len(own) != 1:
            raise MethodError(
                f"{loaded.__name__} must define one method, got {len(own)}: the name of a file that isn't a "
                "method starts with an underscore"
            )
        if own[0].name in found:
            raise MethodError(f"{loaded.__name__}: the method {own[0].name!r} is defined twice")
        found[own[0].name] = own[0]
    return MappingProxyType(dict(sorted(found.items())))


def make_method(
    name: str,
    budget: int | str | None = None,
    **options: Any,  # noqa: ANN401 - any field's value
) -> Method:
    """Make a method.

    Args:
        name: One of `methods()`.
        budget: KV tokens, or a text such as "2560" or "4k" (k = 1024); None for a method without a budget.
        options: Further fields; texts are read by the field's type.

    Raises:
        MethodError: An unknown name or option, a value that isn't allowed, no budget or one too many.

    Example:
        >>> make_method("quest", "4k", reading="kernel").label
        'quest@4096-reading=kernel'
        >>> make_method("xattention", tau=0.8).label
        'xattention@tau=0.8'
    """
    if name not in methods():
        raise MethodError(f"unknown method {name!r}{_hint(name, methods())}")
    chosen = methods()[name]
    kinds = field_types(chosen)
    values: dict[str, Any] = dict(options)
    known = [key for key in kinds if key != "budget" or budget is None]
    for key in values:
        if key not in kinds:
            raise MethodError(f"{name}: unknown option {key!r}{_hint(key, known)}")
    if issubclass(chosen, Budgeted):
        if budget is None:
            raise MethodError(f"{name}: a budget is missing: {chosen.budget_unit}")
        values["budget"] = budget
    elif budget is not None:
        raise MethodError(
            f"{name} has no budget, got {budget!r}: how much it reads follows from {_and(chosen.stated)}; "
            f"write {_without_budget(chosen)}"
        )
    for key, value in values.items():
        if isinstance(value, str):
            values[key] = read_field(name, key, value, kinds[key])
        elif isinstance(value, list):
            values[key] = tuple(value)
        elif kinds[key] is float and type(value) is int:
            values[key] = float(value)  # one text for one value, in labels and stored keys
    return chosen(**values)


def parse_method(text: str) -> Method:
    """Read `NAME:BUDGET` or `NAME:BUDGET,OPTION=VALUE,...`, such as `quest:2560` or `quest:4k,page=32`.

    A method without a budget is `NAME` or `NAME:OPTION=VALUE,...`, such as `xattention:tau=0.9`. A list of
    layers is written with plus signs, `dense_layers=0+1`, and an empty one `none`.

    Raises:
        MethodError: A text of another form, or what `make_method` refuses.
    """
    name, budget, values = split_method(text)
    return make_method(name, budget, **values)


def split_method(text: str) -> tuple[str, str | None, dict[str, str]]:
    """Name, budget and options of a text that `parse_method` reads, as they are written.

    Raises:
        MethodError: A text of another form.
    """
    name, colon, rest = text.strip().partition(":")
    parts = [part.strip() for part in rest.split(",")] if colon else []
    if name and name not in methods():
        written, at, rest = name.partition("@")  # as variants are named
        hint = f": write {written}:{rest}" if at and written in methods() else _hint(written, methods())
        raise MethodError(f"unknown method {name!r}{hint}")
    chosen = methods().get(name)
    budgeted = chosen is None or issubclass(chosen, Budgeted)
    has_budget = bool(parts) and bool(parts[0]) and "=" not in parts[0]
    form = "a method is written NAME:BUDGET[,OPTION=VALUE...], such as quest:2560,page=16"
    if chosen is not None and not budgeted:
        form = f"{name} is written NAME[:OPTION=VALUE...], such as {_without_budget(chosen)}"
    form += f"; got {text!r}"
    if chosen is None or (colon and not parts[0]) or (budgeted and not has_budget):
        raise MethodError(form)
    budget = parts.pop(0) if has_budget else None
    values: dict[str, str] = {}
    for option in parts:
        key, equals, value = (part.strip() for part in option.partition("="))
        if not (key and equals and value):
            raise MethodError(f"{form}: {option!r} isn't OPTION=VALUE")
        if key in values or (key == "budget" and budget is not None):
            raise MethodError(f"{name}: {key} is given twice in {text!r}")
        if key == "budget":
            budget = value
        else:
            values[key] = value
    return name, budget, values


def _without_budget(method: type[Method]) -> str:
    """How a method without a budget is written, with what it always states at its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(method)}
    return f"{method.name}:{','.join(f'{name}={defaults[name]}' for name in method.stated)}"


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)


def read_field(name: str, field: str, text: str, kind: Any) -> object:  # noqa: ANN401 - a type, or a form of `typing`
    """A field's value from its text; what has no reading is left to the method's own check."""
    if get_origin(kind) is tuple:
        parts = [] if text == "none" else text.split("+")
        return tuple(read_field(name, field, part, get_args(kind)[0]) for part in parts)
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is int:
        match = _TOKENS.fullmatch(text.strip())
        if match is None:
            raise MethodError(f'{name}: {field} must be a whole number such as 512 or "4k", got {text!r}')
        return int(match[1]) * _UNITS[match[2].lower()]
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise MethodError(f"{name}: {field} must be a number, got {text!r}") from None
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == text), text)
    return text


def _hint(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    guess = f", did you mean {near[0]}?" if near else ""
    return f"{guess or ''} ({'known: ' + ', '.join(known) if known else 'there are none'})"
