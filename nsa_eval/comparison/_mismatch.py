"""A difference between how two models were asked, as a line, and the error that lists such lines."""

import json
from collections.abc import Sequence

from nsa_eval.errors import UserError


class Mismatch(str):
    """A difference that forbids a comparison, as a line; its causes decide whether it may be allowed."""

    causes: frozenset[str]

    @classmethod
    def of(cls, line: str, *causes: str) -> "Mismatch":
        """A line with its causes; none where nothing can allow it."""
        made = cls(line)
        made.causes = frozenset(causes)
        return made

    def within(self, where: str) -> "Mismatch":
        """The same with a place in front."""
        return Mismatch.of(f"{where}: {self}", *self.causes)


class ProtocolMismatchError(UserError):
    """Two models can't be compared: their tasks, data or protocol differ.

    Args:
        differences: One line for each difference; all of them, not the first.
    """

    def __init__(self, differences: Sequence[str]) -> None:
        """Puts the lines into one message."""
        self.differences = tuple(differences)
        lines = "\n".join(f"  - {line}" for line in self.differences)
        super().__init__(
            f"These runs can't be compared: they were not measured the same way.\n{lines}\n"
            "Evaluate both models with the same config, or select what they share (tasks, models, metrics)."
        )


def contrast(what: str, a: object, b: object, names: tuple[str, str]) -> str:
    """One setting's two values, each with its model's name."""
    return f"{what}: {shown(a)} in {names[0]}, {shown(b)} in {names[1]}"


def shown(value: object) -> str:
    """A value in a line of text, cut where it is long."""
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
