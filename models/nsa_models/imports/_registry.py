"""Formats by the `model_type` that they go by."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import nsa_models.imports as package
from nsa_models.imports._format import Format


@cache
def formats() -> Mapping[str, Format]:
    """All formats: the `FORMAT` of every public module of this package."""
    modules = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
    found: list[Format] = [
        importlib.import_module(f"{package.__name__}.{name}").FORMAT for name in sorted(modules)
    ]
    return MappingProxyType({known.model_type: known for known in found})
