"""What the task takes."""

from dataclasses import dataclass

from nsa_tasks._parameters import Parameter, read_lengths, whole_number
from nsa_tasks.data import DATA_ROOT
from nsa_tasks.family import Params

AUTO = "auto"
ALL = "all"
DOUBLINGS = 6
"""Buckets that `auto` makes beside the first: the window's 1/64, 1/32, ..., 1/2 and its end."""
SMALLEST = 8
"""Tokens: a bucket of fewer says nothing, and leaves no room to look for a place to cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionParams(Params):
    """Resolved parameters."""

    source: str
    buckets: tuple[int, ...] | str
    """Ends of the buckets in tokens, ascending; "auto" until the model's window is known."""
    documents: int | str
    """How many, or "all" that are long enough."""
    data_root: str


def automatic(window: int) -> tuple[int, ...]:
    """Bucket ends that double up to a model's window: 1k, 2k, ..., 64k for one of 64k.

    Args:
        window: Tokens that the model takes.
    """
    ends = (window >> step for step in range(DOUBLINGS, -1, -1))
    return tuple(end for end in ends if end >= SMALLEST)


def _read_source(value: object) -> str:
    if isinstance(value, str) and (value == "pg19" or (value.startswith("text:") and value[5:].strip())):
        return value
    raise ValueError(
        "expected pg19, or text:PATH with a text (.txt), a folder of them, or books with a field `text` "
        "(.jsonl or .json), also as .gz or .xz"
    )


def _read_buckets(value: object) -> list[int] | str:
    if value == AUTO:
        return AUTO
    try:
        ends = read_lengths(value)
    except ValueError as error:
        raise ValueError(f'expected "auto" or token positions such as [1k, 2k, 4k]: {error}') from None
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if min(sizes) < SMALLEST:
        raise ValueError(
            f"expected positions that rise by at least {SMALLEST} tokens from 0 on, such as [1k, 2k, 4k]"
        )
    return ends


def _read_documents(value: object) -> int | str:
    if value == ALL:
        return ALL
    try:
        return whole_number(1, 1_000_000)(value)
    except ValueError as error:
        raise ValueError(f'{error}, or "all"') from None


PARAMETERS = (
    Parameter(
        name="source",
        unit="name",
        help="pg19 (test split) | text:PATH: a .txt, a folder of them, or .jsonl books with `text`, "
        "also .gz, .xz",
        read=_read_source,
        scheme="text",
    ),
    Parameter(
        name="buckets",
        unit="tokens",
        help="where buckets end, from the document's start; auto doubles up to the model's window",
        read=_read_buckets,
    ),
    Parameter(
        name="documents",
        unit="documents",
        help="how many, the first that reach the last bucket's end; or all of those",
        read=_read_documents,
    ),
    DATA_ROOT,
)
