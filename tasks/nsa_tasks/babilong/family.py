"""The BABILong family, as the rest of the package and the harness know it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._parameters import Parameter
from nsa_tasks.babilong.parameters import PARAMETERS, PROMPT_ROOM, BabilongParams
from nsa_tasks.babilong.sources import OFFICIAL, PG19, facts_source
from nsa_tasks.babilong.stories import NAMES
from nsa_tasks.data import DataSource
from nsa_tasks.family import Params, RequestSize, Size, TaskFamily

_PROMPT_TOKENS = 320
"""About what the prompt around a context takes, for the plan of a run: the official ones have 631 to 1,255
characters, 200 to 391 of the bundled twins' tokens, 317 on average."""


def protocol(params: BabilongParams, *, gpt2: bool) -> str:
    """Whose definition a score follows: the official one, with what is not so.

    Args:
        params: Resolved parameters.
        gpt2: Whether lengths are counted in GPT-2's tokens.
    """
    other = []
    if not gpt2:
        other.append(f"lengths in {'the model' if params.count == 'model' else 'another tokenizer'}'s tokens")
    if params.background != "pg19":
        other.append("background not PG-19")
    base = "official" if params.prompt == "official" else "official rule, lm-eval's wording"
    return f"{base} ({', '.join(other)})" if other else base


class BabilongFamily(TaskFamily):
    """BABILong (arXiv 2406.10149): qa1 to qa20."""

    name = "babilong"
    title = "BABILong"
    effective_score = 0.85
    """What the paper calls satisfactory (arXiv 2406.10149, section 3): a length counts as used up to it."""

    def parameters(self, task: str) -> tuple[Parameter, ...]:
        """List what a task takes: all the same."""
        return PARAMETERS

    def check(self, task: str, values: Mapping[str, Any]) -> BabilongParams:
        """Check that local files are there, before a model loads."""
        for name in ("background", "count"):
            _, colon, path = str(values[name]).partition(":")
            if colon and not os.path.exists(Path(path).expanduser()):
                raise TaskParameterError(
                    f"{task}: {name} = {values[name]!r}: no such file or folder (looked for "
                    f"{Path(path).expanduser().absolute()})."
                )
        return BabilongParams(task=task, **{**values, "lengths": tuple(values["lengths"])})

    def size(self, params: Params) -> Size:
        """Count samples, and about their tokens."""
        own = cast("BabilongParams", params)
        contexts = sum(max(length - PROMPT_ROOM, 0) for length in own.lengths)
        documents = len(own.lengths) * own.samples
        around = _PROMPT_TOKENS + own.new_tokens
        return Size(documents, contexts * own.samples + documents * around)

    def requests(self, params: Params) -> tuple[RequestSize, ...]:
        """As `size` counts them: a length is the text's alone, less some room."""
        own = cast("BabilongParams", params)
        around = _PROMPT_TOKENS + own.new_tokens
        return tuple(
            RequestSize(own.samples, max(length - PROMPT_ROOM, 0) + around, own.new_tokens)
            for length in own.lengths
        )

    def grid(self, params: Params) -> tuple[int, int]:
        """Lengths, and the samples of each."""
        own = cast("BabilongParams", params)
        return len(own.lengths), own.samples

    def data_sources(self, params: Params | None = None) -> tuple[DataSource, ...]:
        """bAbI's file, the official prompts, and PG-19, as far as they are read."""
        if not isinstance(params, BabilongParams):
            return (*(facts_source(qa, "") for qa in NAMES), OFFICIAL, PG19)
        found = [facts_source(params.qa, params.data_root)]
        found += [OFFICIAL] if params.prompt == "official" else []
        found += [PG19] if params.background == "pg19" else []
        return tuple(found)


FAMILY = BabilongFamily()
