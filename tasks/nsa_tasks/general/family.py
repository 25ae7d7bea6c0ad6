"""The general family: its own tasks are the two that run code; the rest are lm-eval's, in groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsa_tasks._parameters import Parameter
from nsa_tasks.data import DATA_ROOT, DataSource
from nsa_tasks.family import Params, Size, TaskFamily
from nsa_tasks.general.records import ALL_SOURCES, CODE_SOURCES

_DOCUMENTS = {"general_humaneval": 164, "general_mbpp": 500}
_TOKENS = 2048
"""Of a request, at most: the longest prompts with their examples, and 1,024 new tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralParams(Params):
    """Resolved parameters of a task that runs code."""

    data_root: str
    """Folder of local records; empty: the environment's, else the hub."""


class GeneralFamily(TaskFamily):
    """HumanEval and MBPP with a scorer that works offline; groups of lm-eval's other tasks."""

    name = "general"
    title = "General benchmarks"
    size_is_at_most = f"as if every problem of HumanEval and MBPP took {_TOKENS:,} tokens; most take fewer"

    def parameters(self, task: str) -> tuple[Parameter, ...]:
        """Where the records are."""
        return (DATA_ROOT,)

    def check(self, task: str, values: Mapping[str, Any]) -> GeneralParams:
        """Take them as they are."""
        return GeneralParams(task=task, **values)

    def size(self, params: Params) -> Size:
        """Count the problems of the whole set."""
        return Size(_DOCUMENTS[params.task], _DOCUMENTS[params.task] * _TOKENS)

    def data_sources(self, params: Params | None = None) -> tuple[DataSource, ...]:
        """The task's problems; without a task those of all groups too."""
        return ALL_SOURCES if params is None else (CODE_SOURCES[params.task],)


FAMILY = GeneralFamily()
