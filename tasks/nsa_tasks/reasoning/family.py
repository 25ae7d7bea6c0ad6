"""The reasoning family, as the rest of the package and the harness know it."""

from collections.abc import Mapping
from typing import Any, cast

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._parameters import Parameter
from nsa_tasks.data import DataSource
from nsa_tasks.family import Params, Size, TaskFamily
from nsa_tasks.reasoning.parameters import PARAMETERS, ReasoningParams, automatic_k
from nsa_tasks.reasoning.records import SOURCES

_PROBLEMS = {
    "reasoning_aime24": 30,
    "reasoning_aime25": 30,
    "reasoning_math500": 500,
    "reasoning_gsm8k": 1319,
}
"""Of the published sets; a local copy may hold fewer."""
_PROMPT_TOKENS = 1024
"""Of a problem with its instruction, at most: MATH-500's longest are figures written as code."""


class ReasoningFamily(TaskFamily):
    """AIME 2024 and 2025, MATH-500, GSM8K: n replies to each problem."""

    name = "reasoning"
    title = "Reasoning"
    truncation = "error"  # a problem that is cut is another problem

    def parameters(self, task: str) -> tuple[Parameter, ...]:
        """List what a task takes."""
        return PARAMETERS

    def check(self, task: str, values: Mapping[str, Any]) -> ReasoningParams:
        """Check replies, temperature and k together."""
        replies, temperature = values["replies"], values["temperature"]
        if replies > 1 and temperature == 0:
            raise TaskParameterError(
                f"{task}: replies = {replies} with temperature = 0: greedy replies to a problem are all the "
                "same one. Set replies = 1, or a temperature such as 0.7."
            )
        k = automatic_k(replies) if values["k"] == "auto" else tuple(values["k"])
        if k and k[-1] > replies:
            raise TaskParameterError(f"{task}: k = {list(k)}: no more than the {replies} replies.")
        return ReasoningParams(task=task, **{**values, "k": k})

    def size(self, params: Params) -> Size:
        """Count the problems of the whole set, and what one reply to each takes at most."""
        own = cast("ReasoningParams", params)
        return Size(_PROBLEMS[own.task], _PROBLEMS[own.task] * (own.budget + _PROMPT_TOKENS))

    def data_sources(self, params: Params | None = None) -> tuple[DataSource, ...]:
        """The task's problems."""
        return tuple(SOURCES.values()) if params is None else (SOURCES[params.task],)

    def repeats(self, params: Params) -> int:
        """Replies asked for each problem."""
        return cast("ReasoningParams", params).replies


FAMILY = ReasoningFamily()
