"""What the LongBench tasks take."""

from dataclasses import dataclass

from nsa_tasks._parameters import Parameter, one_of, read_token_count
from nsa_tasks.data import DATA_ROOT
from nsa_tasks.family import Params
from nsa_tasks.longbench.prompts import Wording

_LEAST = 16
"""Tokens: less holds no question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LongBenchParams(Params):
    """Resolved parameters of a LongBench task."""

    max_prompt_tokens: int | str
    """Most tokens of a prompt, BOS counted, or "auto": by the model's window."""
    prompts: Wording
    data_root: str
    """Folder with `longbench/v1/`; empty leaves it to the environment and the hub."""


def _read_limit(value: object) -> int | str:
    if value == "auto":
        return "auto"
    try:
        limit = read_token_count(value)
    except ValueError:
        limit = 0
    if limit < _LEAST:
        raise ValueError(f'expected "auto" or a number of tokens from {_LEAST}, such as 31500')
    return limit


PARAMETERS = (
    Parameter(
        name="max_prompt_tokens",
        unit="tokens",
        help="a longer prompt loses its middle, before any chat template; auto = 3500, 7500, 15500, 31500 "
        "for a window of 4k, 8k, 16k, 32k, and so on",
        read=_read_limit,
        parse=lambda text: int(text) if text.isdecimal() else text,
    ),
    Parameter(
        name="prompts",
        unit="name",
        help="whose wording: official (dataset2prompt.json under the data root) | lm-eval | auto = official "
        "where its file is",
        read=one_of("auto", "official", "lm-eval"),
    ),
    DATA_ROOT,
)
