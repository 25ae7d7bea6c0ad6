"""The LongBench v2 family, as the rest of the package and the harness know it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsa_tasks._parameters import Parameter, read_token_count, whole_number
from nsa_tasks.data import DATA_ROOT, DataSource
from nsa_tasks.family import Params, Size, TaskFamily
from nsa_tasks.longbench2.sources import OF_TASK, PARTS, WHOLE, records, template


@dataclass(frozen=True, slots=True, kw_only=True)
class LongBench2Params(Params):
    """Resolved parameters of a LongBench v2 task."""

    max_length: int
    """Tokens of a prompt before the chat template; the middle of a longer one is cut out."""
    compensated: bool
    new_tokens: int
    data_root: str
    cot_tokens: int | None = None


def _read_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise ValueError("expected true or false")


def _read_window(value: object) -> int:
    tokens = read_token_count(value)
    if tokens < 2:
        raise ValueError("expected at least 2 tokens: a prompt that is cut keeps a beginning and an end")
    return tokens


_COMMON = (
    Parameter(
        name="max_length",
        unit="tokens",
        help="of a prompt before the chat template; the middle of a longer one is cut out",
        read=_read_window,
    ),
    Parameter(
        name="compensated",
        unit="true or false",
        help="count a reply without an answer as a guess among four (0.25)",
        read=_read_flag,
    ),
    Parameter(name="new_tokens", unit="tokens", help="budget of the answer", read=whole_number(1, 1_000_000)),
    DATA_ROOT,
)
_COT = Parameter(
    name="cot_tokens",
    unit="tokens",
    help="budget of the thoughts, which the answer is then asked from",
    read=whole_number(1, 1_000_000),
)


class LongBench2Family(TaskFamily):
    """LongBench v2 (arXiv 2412.15204): zero-shot, with thoughts first, and without the text."""

    name = "longbench2"
    title = "LongBench v2"
    truncation = "error"  # its own cut is the protocol's; nothing else may be lost

    def parameters(self, task: str) -> tuple[Parameter, ...]:
        """List what a task takes."""
        return (*_COMMON, _COT) if task == "longbench2_cot" else _COMMON

    def check(self, task: str, values: Mapping[str, Any]) -> LongBench2Params:
        """Nothing contradicts anything."""
        return LongBench2Params(task=task, **values)

    def size(self, params: Params) -> Size | None:
        """Only the records tell: a copy may hold some of the 503."""
        return None

    def data_sources(self, params: Params | None = None) -> tuple[DataSource, ...]:
        """The records, whole or in parts, and the templates."""
        if not isinstance(params, LongBench2Params):
            every = dict.fromkeys(name for names in OF_TASK.values() for name in names)
            return (WHOLE, PARTS, *map(template, every))
        return (records(params.data_root), *map(template, OF_TASK[params.task]))

    def document_identity(self, document: Mapping[str, Any]) -> str:
        """The record's own id."""
        return str(document["_id"])


FAMILY = LongBench2Family()
