"""Where each value of a settings file was written, so that a mistake is named by file and line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nsa_settings._yaml import Place


class SettingsError(ValueError):
    """One or more mistakes in settings, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Gather the lines, each `where: key: what is wrong; what to do`."""
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(slots=True)
class Source:
    """The text that settings came from.

    Attributes:
        label: How to name it in a message: `configs/quickstart.yaml`, or `config` for one built in Python.
        lines: Line of every key and entry, from 1; empty for settings built in Python.
        overrides: Where keys were set otherwise: `("limit",) -> "--set limit=3"`.
    """

    label: str
    lines: dict[Place, int] = field(default_factory=dict)
    overrides: dict[Place, str] = field(default_factory=dict)

    def replaced(self, path: Place, label: str) -> None:
        """Note that `label` set the value at `path`: what was written there or inside of it is gone."""
        self.lines = {at: line for at, line in self.lines.items() if at[: len(path)] != path}
        self.overrides = {at: by for at, by in self.overrides.items() if at[: len(path)] != path}
        self.overrides[path] = label

    def renamed(self, path: Place, key: str) -> None:
        """Note that what is written at `path` is looked for under `key` from now on."""
        to = (*path[:-1], key)
        self.lines |= {(*to, *at[len(path) :]): n for at, n in self.lines.items() if at[: len(path)] == path}
        self.overrides |= {
            (*to, *at[len(path) :]): by for at, by in self.overrides.items() if at[: len(path)] == path
        }

    def message(self, path: Place, text: str) -> str:
        """Make `configs/x.yaml:12: tasks[0].lengths: text`, with the nearest line that is known."""
        key = key_name(path)
        return f"{self.place(path)}: {key}: {text}" if key else f"{self.place(path)}: {text}"

    def place(self, path: Place) -> str:
        """Where the value at `path` was written, or what holds it: `configs/x.yaml:12`."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.overrides:
                return self.overrides[path[:end]]
            if path[:end] in self.lines:
                return f"{self.label}:{self.lines[path[:end]]}"
        return self.label


def key_name(path: Place) -> str:
    """Write a place as people do: `tasks[0].lengths`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
