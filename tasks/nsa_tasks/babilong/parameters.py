"""What the BABILong tasks take."""

from collections.abc import Callable
from dataclasses import dataclass

from nsa_tasks._parameters import Parameter, one_of, whole_number
from nsa_tasks.data import DATA_ROOT
from nsa_tasks.family import Params

_K, _M = 1000, 1_000_000  # of BABILong's names: "4k" is 4,000 tokens, not 4,096
_LONGEST = 100 * _M
PROMPT_ROOM = 300
"""Tokens that the official builder takes off each length for the prompt around the context."""
SUFFIX = {"k": _K, "m": _M}


@dataclass(frozen=True, slots=True, kw_only=True)
class BabilongParams(Params):
    """Resolved parameters of a BABILong task."""

    lengths: tuple[int, ...]
    """Nominal tokens: contexts have 300 fewer; 0 is facts alone."""
    samples: int
    """Of each length."""
    seed: int
    background: str
    count: str
    prompt: str
    new_tokens: int
    data_root: str

    @property
    def qa(self) -> str:
        """BABILong's name of the task: "qa1"."""
        return self.task.removeprefix("babilong_")


def _read_length(value: object) -> int:
    expected = 'expected tokens such as 0, 4000, "0k", "4k" or "1M" (k = 1000, as BABILong counts)'
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(expected)
    if isinstance(value, str):
        text = value.strip().lower()
        factor = SUFFIX.get(text[-1:], 1)
        digits = text[:-1] if factor > 1 else text
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 12):
            raise ValueError(expected)
        value = int(digits) * factor
    if not (value == 0 or PROMPT_ROOM < value <= _LONGEST):
        raise ValueError(
            f"expected 0, or more than the {PROMPT_ROOM} tokens that are kept for the prompt, at most "
            f"{_LONGEST:,}"
        )
    return value


def read_lengths(value: object) -> list[int]:
    """Read lengths: a list, one, or "0k,4k"; k = 1000; no length twice.

    Raises:
        ValueError: Anything else.
    """
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    elif not isinstance(value, list | tuple):
        value = [value]
    if not value:
        raise ValueError('expected at least one length, such as [0k, 4k] or "0k,4k"')
    lengths = [_read_length(item) for item in value]
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"a length stands there twice: {lengths}")
    return lengths


def _named(*names: str, scheme: str, what: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if isinstance(value, str) and (
            value in names or (value.startswith(f"{scheme}:") and value.partition(":")[2].strip())
        ):
            return value
        raise ValueError(f"expected {', '.join(names)}, or {scheme}:PATH with {what}")

    return read


PARAMETERS = (
    Parameter(
        name="lengths",
        unit="tokens",
        help="nominal lengths, a list; k = 1000, and 300 are kept for the prompt; 0k is facts alone",
        read=read_lengths,
    ),
    Parameter(
        name="samples", unit="samples per length", help="of each length", read=whole_number(1, 100_000)
    ),
    Parameter(
        name="seed",
        unit="number",
        help="questions, background and places are drawn by it",
        read=whole_number(-(2**63), 2**63 - 1),
    ),
    Parameter(
        name="background",
        unit="name",
        help="text around the facts: pg19 | generated | text:PATH (.txt, a folder of them, .jsonl)",
        read=_named("pg19", "generated", scheme="text", what="a .txt file, a folder of them, or .jsonl"),
        scheme="text",
    ),
    Parameter(
        name="count",
        unit="name",
        help="whose tokens a length is: model | gpt2 (official) | tokenizer:PATH (a local copy of it)",
        read=_named("model", "gpt2", scheme="tokenizer", what="a tokenizer's folder"),
        scheme="tokenizer",
    ),
    Parameter(
        name="prompt",
        unit="name",
        help="wording: official (babilong/prompts.py under the data root) | lm-eval (its task's)",
        read=one_of("official", "lm-eval"),
    ),
    Parameter(name="new_tokens", unit="tokens", help="budget of a reply", read=whole_number(1, 1_000_000)),
    DATA_ROOT,
)
"""Of every BABILong task."""
