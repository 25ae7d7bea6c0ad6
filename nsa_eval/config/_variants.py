"""What a model entry stands for: the checkpoint as it is, with fields set, or under a sparse method."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_origin

from nsa_eval.config._types import LONGEST_NAME, variant_name
from nsa_eval.config.schema import MethodSpec, ModelSpec, RunConfig, VariantSpec

_SYMBOLS = {
    "nsa_select_count": "n",
    "nsa_window": "w",
    "nsa_block": "l",
    "nsa_stride": "d",
}
"""Short names of config fields in the names of variants: the paper's symbols (arXiv 2502.11089, 3.3)."""


_MOST_VARIANTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of a table: a checkpoint, and what is different about it."""

    name: str
    """Its name in tables, folders and `compare.baseline`."""
    checkpoint: ModelSpec
    """The model entry that it belongs to."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the checkpoint's config, with their new values."""
    method: MethodSpec | None = None
    """A sparse method with one budget, or without; or no method."""

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the checkpoint as it is, as plain data; empty for the checkpoint itself."""
        found: dict[str, Any] = {}
        if self.changes:
            found["set"] = dict(self.changes)
        if self.method is not None:
            found["method"] = self.method.model_dump(mode="json", exclude_none=True)
        return found


def variants_of(model: ModelSpec) -> tuple[Variant, ...]:
    """The variants of a model entry, each list of values written out.

    Raises:
        ValueError: A name that can't become part of file names, or lists that make too many.
    """
    return tuple(found for spec in model.variants for found in _written_out(model, spec))


def all_variants(config: RunConfig) -> tuple[Variant, ...]:
    """The variants of all models, in the order of the config: what a run evaluates."""
    return tuple(variant for model in config.models for variant in variants_of(model))


def _written_out(model: ModelSpec, spec: VariantSpec) -> Iterator[Variant]:
    lists = [value if isinstance(value, list) else [value] for value in spec.set.values()]
    swept = {} if spec.method is None else _swept(spec.method)
    count = math.prod(map(len, [*lists, *swept.values()]))
    if count > _MOST_VARIANTS:
        raise ValueError(f"{count:,} variants, at most {_MOST_VARIANTS:,}: shorten the lists")
    for values in itertools.product(*lists):
        changes = dict(zip(spec.set, values, strict=True))
        for method in _methods(spec.method):
            name = spec.name or _fitting("".join([model.name, *_parts(changes, method)]))
            yield Variant(name=variant_name(name), checkpoint=model, changes=changes, method=method)


def _methods(method: MethodSpec | None) -> Iterator[MethodSpec | None]:
    """A method at each of its budgets, and at each value of its other parameters that are lists."""
    swept = {} if method is None else _swept(method)
    if method is None or not swept:
        yield method
        return
    for values in itertools.product(*swept.values()):
        yield method.model_copy(update=dict(zip(swept, values, strict=True)))


def _swept(method: MethodSpec) -> dict[str, list[Any]]:
    """The parameters that are given as lists of values, the budget first.

    A list is one value of a parameter that is itself a list (`dense_layers: [0, 1]`); of such a one, a list
    of lists is several.
    """
    found: dict[str, list[Any]] = {"budget": method.budget} if isinstance(method.budget, list) else {}
    listed = {key: value for key, value in method.options.items() if isinstance(value, list)}
    if not listed:
        return found
    from nsa_models.methods import field_types, methods  # torch takes seconds

    if method.name not in methods():
        return found  # said by the config's check
    kinds = field_types(methods()[method.name])
    for key, values in listed.items():
        is_list = get_origin(kinds.get(key)) is tuple
        if values and key in kinds and (not is_list or all(isinstance(value, list) for value in values)):
            found[key] = values
    return found


def _fitting(name: str) -> str:
    """A name that was made here, cut to what a file may be called; a hash tells those that begin alike."""
    if len(name) <= LONGEST_NAME:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{name[: LONGEST_NAME - len(mark) - 1].rstrip(',-')}-{mark}"


def _parts(changes: Mapping[str, Any], method: MethodSpec | None) -> Iterator[str]:
    for key, value in changes.items():
        yield f"+{_SYMBOLS.get(key, key)}={_short(value)}"
    if method is not None:
        budget = "" if method.budget is None else f"@{str(method.budget).replace('%', 'pct')}"
        yield f"+{method.name}{budget}"
        yield from (f",{key}={_short(value)}" for key, value in method.options.items())


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
    if isinstance(value, float):
        text = text.replace("e+", "e")  # 1e+20: no minus may come of it
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "none"
