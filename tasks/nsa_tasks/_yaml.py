"""The task YAMLs, read without lm-eval's index of thousands of files."""

import importlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TASKS_DIR = Path(__file__).parent
"""Folder for lm-eval's `TaskManager(include_path=...)` and `--include_path`."""


class _Loader(yaml.SafeLoader):
    """YAML with `!function package.module.name`, resolved by import."""


def _function(loader: _Loader, node: yaml.ScalarNode) -> object:
    module, _, name = str(loader.construct_scalar(node)).rpartition(".")
    return getattr(importlib.import_module(module), name)


_Loader.add_constructor("!function", _function)


class PlainLoader(yaml.SafeLoader):
    """The same YAML with functions left as their names: listing tasks imports nothing."""


def _function_name(loader: PlainLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


PlainLoader.add_constructor("!function", _function_name)


def load_task_yaml(path: Path, *, resolve: bool) -> dict[str, Any]:
    """Read one task YAML with its `include`, as lm-eval does (own keys win over included ones).

    Args:
        path: The YAML file.
        resolve: Import what `!function` names; otherwise leave the names.
    """
    loader = _Loader if resolve else PlainLoader
    config: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    include = config.pop("include", None)
    if include is None:
        return config
    return {**load_task_yaml(path.parent / include, resolve=resolve), **config}


def yaml_chain(path: Path) -> tuple[Path, ...]:
    """A task YAML and what it includes, in that order."""
    include = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader).get("include")
    return (path,) if include is None else (path, *yaml_chain(path.parent / include))


@cache
def task_files() -> dict[str, Path]:
    """Map each task's name to its YAML, in the order of the task families' folders."""
    return {name: path for key, name, path in _definitions() if key == "task"}


@cache
def group_files() -> dict[str, Path]:
    """Map each group's name to its YAML, in the same order."""
    return {name: path for key, name, path in _definitions() if key == "group"}


def _definitions() -> Iterator[tuple[str, str, Path]]:
    # The package's own path, which may have more folders than the one of this file.
    for root in map(Path, sys.modules[str(__package__)].__path__):
        for path in sorted(root.glob("*/*.yaml")):
            if not path.name.startswith("_"):
                content = load_task_yaml(path, resolve=False)
                key = "group" if "group" in content else "task"
                yield key, str(content[key]), path
