"""Recipes read from files: YAML and `--set`, with every mistake told by file, line and likely meaning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nsa_models.train.recipe import Recipe
from nsa_settings import SettingsError, Source, YamlError, apply_override, explain, parse_yaml

Checked = TypeVar("Checked", bound=BaseModel)


def load_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.
        changes: Keys to set otherwise, as `text.folder=books` or `stages.1.max_steps=300`; values are YAML.

    Raises:
        SettingsError: The file is missing, isn't YAML, or a key is unknown or of the wrong type.
    """
    raw, source = read(path, "a recipe's")
    change(raw, changes, source)
    return checked(Recipe, raw, source)


def read(path: Path, whose: str) -> tuple[dict[str, Any], Source]:
    """A YAML file's keys and values, unchecked, and where each was written.

    Args:
        path: The file.
        whose: What it should hold the keys of, as `a recipe's`.

    Raises:
        SettingsError: The file is missing, isn't YAML, or holds something else.
    """
    source = Source(str(path))
    try:
        raw, source.lines = parse_yaml(path.read_text(encoding="utf-8"), number_keys=True)
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"{path}: not a UTF-8 text file (byte {error.start})"]) from error
    except YamlError as error:
        source.lines = {error.path: error.line}
        raise SettingsError([source.message(error.path, error.message)]) from error
    if not isinstance(raw, dict):
        raise SettingsError([f"{path}: expected {whose} keys and values, got {raw!r:.60}"])
    return raw, source


def change(raw: dict[str, Any], changes: Iterable[str], source: Source) -> None:
    """Put a command line's `a.b=value` into a recipe's plain data.

    Raises:
        SettingsError: There is no such place, or the value isn't YAML.
    """
    for one in changes:
        apply_override(raw, one, source, example="stages.1.max_steps=300", number_keys=True)


def checked(kind: type[Checked], raw: dict[str, Any], source: Source) -> Checked:
    """Plain data as `kind`.

    Raises:
        SettingsError: A key is missing, unknown or of the wrong type; a line for each.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise SettingsError(explain(error, source, kind)) from error
