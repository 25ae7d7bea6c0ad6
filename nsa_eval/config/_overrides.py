"""`--set a.b=c`: change one value of a config from the command line."""

from __future__ import annotations

from typing import Any

from nsa_eval._suggest import did_you_mean
from nsa_eval.config._source import Source, key_name
from nsa_eval.config._yaml import Path_, YamlError, parse_yaml
from nsa_eval.errors import ConfigError


def apply_override(data: dict[str, Any], override: str, source: Source) -> None:
    """Set one value in `data`, in place.

    The value is read as YAML, so `limit=3` is a number and `tasks.0.lengths=[1k, 2k]` a list. A part of a
    list is named by its index (`models.0.dtype`) or by the name of the model or task (`models.nsa.dtype`).
    Mappings that the config left out (`engine.batch_size=4`) are made.

    Args:
        data: The config as read, before validation.
        override: `key=value`.
        source: Where the config came from; learns which keys this override set.

    Raises:
        ConfigError: No `=`, a value that isn't YAML, or a key that leads nowhere.
    """
    label = f"--set {override}"
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError([f"{label}: expected KEY=VALUE, such as --set engine.batch_size=4"])
    try:
        value, _ = parse_yaml(text)
    except YamlError as error:
        raise ConfigError([f"{label}: the value is {error.message}"]) from None
    path: Path_ = ()
    here: Any = data
    parts = key.strip().split(".")
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(here, list):
            index = _index(here, part, path, label)
            path = (*path, index)
            if last:
                here[index] = value
            here = here[index]
        elif isinstance(here, dict):
            path = (*path, part)
            if last:
                here[part] = value
            elif here.get(part) is None:
                here[part] = {}
            here = here[part]
        else:
            raise ConfigError([f"{label}: {key_name(path)} is {here!r}, so it has no {part!r} to set"])
    source.overrides[path] = label


def _index(entries: list[Any], part: str, path: Path_, label: str) -> int:
    """Find the entry of a list that `part` names, by index or by name."""
    where = key_name(path)
    if part.isdecimal() and part.isascii():
        if int(part) < len(entries):
            return int(part)
        holds = f"entries 0 to {len(entries) - 1}" if entries else "no entries"
        raise ConfigError([f"{label}: {where} has {holds}; there is no {part}"])
    names: dict[str, int] = {}
    for i, entry in enumerate(entries):
        if isinstance(entry, dict):
            name = entry.get("name") or entry.get("alias") or entry.get("task")
            if isinstance(name, str):
                names.setdefault(name, i)
    if part in names:
        return names[part]
    raise ConfigError([f"{label}: {where} has no entry {part!r}{did_you_mean(part, names)}"])
