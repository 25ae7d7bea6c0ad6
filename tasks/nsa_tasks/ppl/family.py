"""The family, as the rest of the package and the harness know it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from nsa_tasks._parameters import Parameter
from nsa_tasks.family import Params, Size, TaskFamily
from nsa_tasks.ppl.parameters import AUTO, PARAMETERS, PositionParams

_GUESSED_WINDOW = 1 << 15
"""Tokens, for the plan's display alone: a window of `auto` is known with the model."""


class PositionFamily(TaskFamily):
    """Perplexity by position."""

    name = "ppl"
    title = "Perplexity by position"
    truncation = "error"  # a cut would move every position behind it

    def parameters(self, task: str) -> tuple[Parameter, ...]:
        """List what the task takes."""
        return PARAMETERS

    def check(self, task: str, values: Mapping[str, Any]) -> PositionParams:
        """Look for the user's text: a wrong path is told before a model loads."""
        buckets = values["buckets"]
        made = PositionParams(
            task=task, **{**values, "buckets": buckets if buckets == AUTO else tuple(buckets)}
        )
        if made.source != "pg19":
            from nsa_tasks.ppl.sources import check_there  # not needed to list tasks

            check_there(made)
        return made

    def size(self, params: Params) -> Size:
        """Count documents, and the tokens of their windows (each is one pass where prefixes are shared)."""
        own = cast("PositionParams", params)
        window = _GUESSED_WINDOW if isinstance(own.buckets, str) else own.buckets[-1]
        return Size(own.documents, own.documents * window)

    def max_request_tokens(self, params: Params) -> int | None:
        """Where the last bucket ends; `auto` follows the model."""
        buckets = cast("PositionParams", params).buckets
        return None if isinstance(buckets, str) else buckets[-1]

    def local_files(self, params: Params) -> tuple[Path, ...]:
        """The user's text, or PG-19's file where it lies under the data root."""
        from nsa_tasks.ppl.sources import pg19_files

        own = cast("PositionParams", params)
        return pg19_files(own) if own.source == "pg19" else super().local_files(params)


FAMILY = PositionFamily()
