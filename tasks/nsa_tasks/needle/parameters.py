"""What the needle tasks take."""

from dataclasses import dataclass

from nsa_tasks._parameters import (
    Parameter,
    one_of,
    parse_depths,
    read_depths,
    read_lengths,
    whole_number,
    write_depths,
)
from nsa_tasks.family import Params

# Reply budget in tokens for one answer. Digits may be one token each and short words two or three, and a chat
# model likes to put a few tokens around the answer: 7 digits, 36 characters of a uuid, two words, eleven
# words.
ANSWER_TOKENS = {"number": 16, "uuid": 48, "word": 24, "sentence": 64}

# The parameter that says how many needles a task hides.
COUNTS = {
    "needle_multikey": "num_keys",
    "needle_multikey_nll": "num_keys",
    "needle_multivalue": "num_values",
    "needle_multiquery": "num_queries",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleParams(Params):
    """Resolved parameters of a needle task."""

    lengths: tuple[int, ...]
    """Tokens of whole requests."""
    depths: tuple[float, ...]
    """Percent."""
    samples: int
    """Of each length and depth."""
    seed: int
    haystack: str
    needle: str
    key: str
    new_tokens: int
    """The reply's budget, inside the lengths."""
    num_keys: int | None = None
    num_values: int | None = None
    num_queries: int | None = None

    @property
    def keys(self) -> int:
        """Keys hidden."""
        return self.num_keys or self.num_queries or 1

    @property
    def values(self) -> int:
        """Values hidden for each key."""
        return self.num_values or 1

    @property
    def queries(self) -> int:
        """Keys asked for."""
        return self.num_queries or 1


def _read_haystack(value: object) -> str:
    if isinstance(value, str) and (
        value in ("generated", "noise", "needles") or (value.startswith("text:") and value[5:].strip())
    ):
        return value
    raise ValueError(
        "expected generated, noise, needles, or text:PATH with a .txt file or a folder of them, "
        "such as text:essays/"
    )


def _read_new_tokens(value: object) -> int | str:
    if value == "auto":
        return "auto"
    try:
        return whole_number(1, 100_000)(value)
    except ValueError:
        raise ValueError('expected "auto" or a whole number of tokens from 1') from None


_COMMON = (
    Parameter(
        name="lengths",
        unit="tokens",
        help="request lengths, reply budget included; a list, k = 1024",
        read=read_lengths,
    ),
    Parameter(
        name="depths",
        unit="percent",
        help="where the needle stands: a count of even steps from 0 to 100 (50: fifty depths), or a list "
        "of percentages (0,50,100; one alone: 50%)",
        read=read_depths,
        write=write_depths,
        parse=parse_depths,
    ),
    Parameter(
        name="samples",
        unit="samples per cell",
        help="samples of each length and depth",
        read=whole_number(1, 100_000),
    ),
    Parameter(
        name="seed",
        unit="number",
        help="every sample's own seed is derived from it",
        read=whole_number(-(2**63), 2**63 - 1),
    ),
    Parameter(
        name="haystack",
        unit="name",
        help="filler: generated | noise | needles | text:PATH (.txt or folder)",
        read=_read_haystack,
        scheme="text",
    ),
    Parameter(
        name="needle",
        unit="name",
        help="what is hidden: number | uuid | word | sentence (single only)",
        read=one_of("number", "uuid", "word", "sentence"),
    ),
    Parameter(
        name="key", unit="name", help="what it is hidden under: words | uuid", read=one_of("words", "uuid")
    ),
    Parameter(
        name="new_tokens",
        unit="tokens",
        help="reply budget, inside the length; auto = 16 a number, 48 a uuid, 24 a word, 64 the sentence",
        read=_read_new_tokens,
    ),
)

_COUNT_HELP = {
    "num_keys": "needles under different keys, one of them asked for",
    "num_values": "values under one key, all of them asked for",
    "num_queries": "keys, all of them asked for",
}


def parameters(task: str) -> tuple[Parameter, ...]:
    """List what a task takes.

    Args:
        task: Task name.
    """
    name = COUNTS.get(task)
    if name is None:
        return _COMMON
    return (
        *_COMMON,
        Parameter(name=name, unit="needles", help=_COUNT_HELP[name], read=whole_number(1, 10_000)),
    )
