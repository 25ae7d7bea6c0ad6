"""What the task takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._parameters import Parameter, read_lengths, whole_number
from nsa_tasks.data import DATA_ROOT
from nsa_tasks.family import Params
from nsa_tasks.window import find_window

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


def bucket_ends(params: PositionParams, metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Where the buckets end.

    Args:
        params: Names them, or says "auto".
        metadata: The task's, by which the model's window is found.

    Raises:
        TaskParameterError: `auto` for a model whose window is not told, or is too small for buckets.
    """
    if not isinstance(params.buckets, str):
        return params.buckets
    window = find_window(params.task, metadata)
    if window is None:
        raise TaskParameterError(
            f"{params.task}: buckets = auto: no window is named for this model (max_length, or its config's "
            "max_position_embeddings); give buckets, such as [1k, 2k, 4k]"
        )
    ends = automatic(window)
    if not ends:
        raise TaskParameterError(f"{params.task}: buckets = auto: a window of {window} tokens is too small")
    return ends


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
