"""The family, as the rest of the package and the harness know it."""

from collections.abc import Mapping
from typing import Any, cast

from nsa_tasks._parameters import Parameter
from nsa_tasks.data import DataSource
from nsa_tasks.family import Params, Size, TaskFamily
from nsa_tasks.ppl.parameters import AUTO, PARAMETERS, PositionParams
from nsa_tasks.ppl.sources import PG19, check_there

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
            check_there(made)
        return made

    def size(self, params: Params) -> Size | None:
        """Count documents, and the tokens of their windows."""
        own = cast("PositionParams", params)
        if isinstance(own.documents, str):
            return None
        window = _GUESSED_WINDOW if isinstance(own.buckets, str) else own.buckets[-1]
        return Size(own.documents, own.documents * window)

    def max_request_tokens(self, params: Params) -> int | None:
        """Where the last bucket ends; `auto` follows the model."""
        buckets = cast("PositionParams", params).buckets
        return None if isinstance(buckets, str) else buckets[-1]

    def data_sources(self, params: Params | None = None) -> tuple[DataSource, ...]:
        """PG-19's books, unless the texts are the user's own."""
        return () if params is not None and cast("PositionParams", params).source != "pg19" else (PG19,)


FAMILY = PositionFamily()
