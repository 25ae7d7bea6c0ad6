"""What the LongBench tasks take."""

from dataclasses import dataclass

from nsa_tasks._parameters import Parameter, one_of, read_token_count
from nsa_tasks.family import Params
from nsa_tasks.longbench.prompts import Wording

_SCHEME = "data"
_LEAST = 16
"""Tokens: less holds no question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LongBenchParams(Params):
    """Resolved parameters of a LongBench task."""

    max_prompt_tokens: int | str
    """Most tokens of a prompt, BOS counted, or "auto": by the model's window."""
    prompts: Wording
    data_root: str
    """`data:PATH`; empty leaves it to the environment and the hub."""

    @property
    def root(self) -> str | None:
        """The folder that `data_root` names."""
        return self.data_root.removeprefix(f"{_SCHEME}:") or None


def read_data_root(value: object) -> str:
    """Read a folder's path, with or without `data:` before it; nothing (or None) stays empty."""
    if value is None or value == "":
        return ""
    if isinstance(value, str) and (path := value.removeprefix(f"{_SCHEME}:").strip()):
        return f"{_SCHEME}:{path}"
    raise ValueError("expected the path of a folder, such as ./data")


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
        help="a longer prompt loses its middle, before any chat template; auto = 3500, 7500, 15500, 31500 for "
        "a window of 4k, 8k, 16k, 32k, and so on",
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
    Parameter(
        name="data_root",
        unit="folder",
        help="where longbench/v1/ lies; empty: NSA_EVAL_DATA, else the hub",
        read=read_data_root,
        scheme=_SCHEME,
    ),
)
