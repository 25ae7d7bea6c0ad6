"""The exceptions that a user's mistake raises."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """A wrong config, path, option or input: shown as one message, without a traceback, exit code 2."""


class ConfigError(UserError):
    """One or more mistakes in a run's config, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Gather the lines, each `where: key: what is wrong; what to do`."""
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))
