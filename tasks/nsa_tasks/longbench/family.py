"""The LongBench family, as the rest of the package and the harness know it."""

from collections.abc import Mapping
from typing import Any, cast

from nsa_tasks._parameters import Parameter
from nsa_tasks.family import Params, Size, TaskFamily
from nsa_tasks.longbench.datasets import dataset_of
from nsa_tasks.longbench.parameters import PARAMETERS, LongBenchParams, read_data_root

_USUAL_LIMIT = 31_500
"""Tokens of a prompt, where the model's window decides and isn't known yet: those of a 32k model."""


class LongBenchFamily(TaskFamily):
    """LongBench v1: question answering, summaries, few-shot, synthetic tasks and code on long texts."""

    name = "longbench"
    title = "LongBench"
    truncation = "error"  # its own cut comes first; nothing else may be cut off

    def parameters(self, task: str) -> tuple[Parameter, ...]:
        """List what a task takes."""
        return PARAMETERS

    def check(self, task: str, values: Mapping[str, Any]) -> LongBenchParams:
        """Nothing that they could say against each other."""
        return LongBenchParams(task=task, **values)

    def size(self, params: Params) -> Size:
        """Count the full set's documents, and tokens as if every prompt were cut."""
        dataset, _ = dataset_of(params.task)
        limit = cast("LongBenchParams", params).max_prompt_tokens
        prompt = _USUAL_LIMIT if isinstance(limit, str) else limit
        return Size(dataset.documents, dataset.documents * (prompt + dataset.new_tokens))

    def max_request_tokens(self, params: Params) -> int | None:
        """The longest prompt with its reply, without a chat template; None where the window decides."""
        limit = cast("LongBenchParams", params).max_prompt_tokens
        return None if isinstance(limit, str) else limit + dataset_of(params.task)[0].new_tokens

    def portable(self, task: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Write the data root by its absolute path."""
        made = dict(given)
        if isinstance(made.get("data_root"), str):
            made["data_root"] = read_data_root(made["data_root"])
        return super().portable(task, made)


FAMILY = LongBenchFamily()
