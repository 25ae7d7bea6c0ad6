"""The LongBench family, as the rest of the package and the harness know it."""

from collections.abc import Mapping
from typing import Any, cast

from nsa_tasks._parameters import Parameter
from nsa_tasks.data import DataSource
from nsa_tasks.family import Params, Size, TaskFamily
from nsa_tasks.longbench.datasets import DATASETS, E_DATASETS, dataset_of
from nsa_tasks.longbench.parameters import PARAMETERS, LongBenchParams
from nsa_tasks.longbench.prompts import OFFICIAL
from nsa_tasks.longbench.records import source_of

_USUAL_LIMIT = 31_500
"""Tokens of a prompt, where the model's window decides and isn't known yet: those of a 32k model."""


class LongBenchFamily(TaskFamily):
    """LongBench v1: question answering, summaries, few-shot, synthetic tasks and code on long texts."""

    name = "longbench"
    title = "LongBench"
    truncation = "error"  # its own cut comes first; nothing else may be cut off
    size_is_at_most = (
        "as if every prompt were as long as LongBench's cut lets it be "
        f"({_USUAL_LIMIT:,} tokens where the model's window decides); most are shorter"
    )

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

    def reply_tokens(self, params: Params) -> int:
        """As the data set's definition has it."""
        return dataset_of(params.task)[0].new_tokens

    def max_request_tokens(self, params: Params) -> int | None:
        """The longest prompt with its reply, without a chat template; None where the window decides."""
        limit = cast("LongBenchParams", params).max_prompt_tokens
        return None if isinstance(limit, str) else limit + dataset_of(params.task)[0].new_tokens

    def data_sources(self, params: Params | None = None) -> tuple[DataSource, ...]:
        """The dataset's records, and LongBench's prompts."""
        if params is None:
            named = [(DATASETS[name], e) for e in (False, True) for name in (E_DATASETS if e else DATASETS)]
            return (OFFICIAL, *(source_of(dataset, e=e) for dataset, e in named))
        own = cast("LongBenchParams", params)
        dataset, e = dataset_of(own.task)
        records = source_of(dataset, e=e, root=own.data_root)
        return (records,) if own.prompts == "lm-eval" else (OFFICIAL, records)


FAMILY = LongBenchFamily()
