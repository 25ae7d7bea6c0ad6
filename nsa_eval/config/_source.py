"""Where each value of a config was written, so that a mistake is named by file and line."""

from __future__ import annotations

from dataclasses import dataclass, field

from nsa_eval.config._yaml import Path_


@dataclass(slots=True)
class Source:
    """The text a config came from.

    Attributes:
        label: How to name it in a message: `configs/quickstart.yaml`, or `config` for one built in Python.
        lines: Line of every key and entry, from 1; empty for a config built in Python.
        overrides: Overrides by the key they set: `("limit",) -> "--set limit=3"`.
    """

    label: str
    lines: dict[Path_, int] = field(default_factory=dict)
    overrides: dict[Path_, str] = field(default_factory=dict)

    def message(self, path: Path_, text: str) -> str:
        """Make `configs/x.yaml:12: tasks[0].lengths: text`, with the nearest line that is known."""
        key = key_name(path)
        return f"{self._place(path)}: {key}: {text}" if key else f"{self._place(path)}: {text}"

    def _place(self, path: Path_) -> str:
        for end in range(len(path), -1, -1):
            if path[:end] in self.overrides:
                return self.overrides[path[:end]]
            if path[:end] in self.lines:
                return f"{self.label}:{self.lines[path[:end]]}"
        return self.label


def key_name(path: Path_) -> str:
    """Write a place as people do: `tasks[0].lengths`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
