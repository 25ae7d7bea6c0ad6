"""`--set a.b=c`: change one value of settings from the command line, or from another file."""

from __future__ import annotations

from typing import Any

from nsa_settings._source import SettingsError, Source, key_name
from nsa_settings._suggest import did_you_mean
from nsa_settings._yaml import Place, YamlError, parse_yaml


def apply_override(
    data: dict[str, Any], override: str, source: Source, *, example: str, number_keys: bool = False
) -> None:
    """Set one value in `data`, in place, from `key=value` whose value is YAML.

    So `limit=3` is a number and `tasks.0.lengths=[1k, 2k]` a list.

    Args:
        data: The settings as read, before validation.
        override: `key=value`.
        source: Where they came from; learns which keys this override set.
        example: What a right one looks like, for the message.
        number_keys: As for `parse_yaml`.

    Raises:
        SettingsError: No `=`, a value that isn't YAML, or a key that leads nowhere.
    """
    label = f"--set {override}"
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError([f"{label}: expected KEY=VALUE, such as --set {example}"])
    try:
        value, _ = parse_yaml(text, number_keys=number_keys)
    except YamlError as error:
        raise SettingsError([f"{label}: the value is {error.message}"]) from None
    set_value(data, key.strip(), value, source, label)


def set_value(data: dict[str, Any], key: str, value: object, source: Source, label: str) -> None:
    """Set the value at `a.b` in `data`, in place.

    A part of a list is named by its index (`models.0.dtype`) or by the name of the model or task
    (`models.nsa.dtype`). Mappings that were left out (`engine.batch_size`) are made.

    Args:
        data: The settings as read, before validation.
        key: Where, with points between the parts.
        value: What stands there from now on.
        source: Where the settings came from; learns that `label` set this key.
        label: Where the value comes from, as `--set limit=3`: begins the message of a mistake.

    Raises:
        SettingsError: A key that leads nowhere.
    """
    path: Place = ()
    here: Any = data
    parts = key.split(".")
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
                if part not in here:  # a mistake in its own name stands where it is named
                    source.replaced(path, label)
                here[part] = {}
            here = here[part]
        else:
            raise SettingsError([f"{label}: {key_name(path)} is {here!r}, so it has no {part!r} to set"])
    source.replaced(path, label)


def _index(entries: list[Any], part: str, path: Place, label: str) -> int:
    """Find the entry of a list that `part` names, by index or by name."""
    where = key_name(path)
    if part.isdecimal() and part.isascii():
        if int(part) < len(entries):
            return int(part)
        many = f"entries 0 to {len(entries) - 1}" if len(entries) > 1 else "entry 0 alone"
        holds = many if entries else "no entries"
        raise SettingsError([f"{label}: {where} has {holds}; there is no {part}"])
    names: dict[str, int] = {}
    for i, entry in enumerate(entries):
        if isinstance(entry, dict):
            name = entry.get("name") or entry.get("alias") or entry.get("task")
            if isinstance(name, str):
                names.setdefault(name, i)
    if part in names:
        return names[part]
    raise SettingsError([f"{label}: {where} has no entry {part!r}{did_you_mean(part, names)}"])
