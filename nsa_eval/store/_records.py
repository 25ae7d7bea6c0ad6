"""What the store keeps for one request, and the events that a reader of the scores has to know about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nsa_eval.audit import KINDS

RequestKind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until", "look"]
"""How lm-eval asks; and where the model looks in a prompt (`nsa_eval.looks`), which a run asks for itself."""
_ANSWERS: dict[RequestKind, type] = {
    "loglikelihood": tuple,
    "loglikelihood_rolling": float,
    "generate_until": str,
    "look": str,
}

_AND = " and "
T = TypeVar("T")


class AuditEvent(BaseModel):
    """Something done to a prompt, or assumed about a model, that can move a score."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: str
    """A key of `nsa_eval.audit.KINDS`, which says what each means."""
    task: str = ""
    """Task of the request, "" for an event of the model itself."""
    doc_id: int | None = None
    """Index of the document in its task."""
    detail: str = ""
    """One sentence for a reader."""
    before: int | None = None
    """Tokens (or limit) before."""
    after: int | None = None
    """Tokens (or limit) after."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of event {kind!r}: it needs an entry in nsa_eval/audit.py")
        return kind


class Cells(BaseModel):
    """Cells of an attention matrix: pairs of a query and a key that it attends to."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    read: int
    """Cells that are computed; where heads differ and a method's declaration is the source, at most."""
    least: int
    """The same at least."""
    dense: int
    """Cells that dense causal attention computes: n (n + 1) / 2 of a prompt of n tokens."""
    index: int = 0
    """Vectors of a key's width that are read besides, to choose; 0 in counts."""
    heads: int = 1
    """Heads, those of all layers, that the figures are summed over; 1: an average one."""
    left: int | None = None
    """As `read`, each cell as the part of its key's and value's elements that is read; None: all of each."""

    def __add__(self, other: Cells) -> Cells:
        """The two together."""
        return Cells(
            read=self.read + other.read,
            least=self.least + other.least,
            dense=self.dense + other.dense,
            index=self.index + other.index,
            heads=max(self.heads, other.heads),
            left=None if self.left is None and other.left is None else self._left + other._left,
        )

    def __sub__(self, other: Cells) -> Cells:
        """What is left without a part of them."""
        return Cells(
            read=self.read - other.read,
            least=self.least - other.least,
            dense=self.dense - other.dense,
            index=self.index - other.index,
            heads=self.heads,
            left=None if self.left is None and other.left is None else self._left - other._left,
        )

    @property
    def _left(self) -> int:
        return self.read if self.left is None else self.left

    @property
    def part(self) -> float:
        """Part of the elements of what is read that is read."""
        return self._left / self.read if self.read else 1.0

    @property
    def density(self) -> float | None:
        """Share of the dense cells that are computed; None without any."""
        return self.read / self.dense if self.dense else None


class Cost(BaseModel):
    """What one response took. Requests of a batch share its time by their tokens.

    Kept beside the responses and never part of what two runs have to agree on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prefill_seconds: float = 0.0
    """Reading prompts, and scoring them."""
    decode_seconds: float = 0.0
    """Tokens of replies, one after another."""
    prompt_tokens: int = 0
    """Tokens of the prompt as it was asked, shared parts included."""
    new_tokens: int = 0
    """Tokens generated or scored."""
    peak_bytes: int | None = None
    """Most device memory in use while its batch ran; None on a CPU."""
    kv_read: int | None = None
    """Cached tokens that the reply's decode steps attended to, a layer and head, over all steps; None for
    scored text."""
    kv_kept: int | None = None
    """Cached tokens a layer and head held at the end of the reply."""
    decode_steps: int = 0
    """Forwards of one token that read the cache: a reply's tokens but its first."""
    kv_read_bytes: int | None = None
    """Of keys and values in all layers and heads that those steps attended to, a row by itself; None for
    scored text, and where the model's config doesn't tell their width."""
    kv_kept_bytes: int | None = None
    """Of keys and values that the row held at the end of the reply."""
    warm_up_seconds: float = 0.0
    """What was paid once while this was answered, beside the other seconds: the probe of the model, kernels
    compiled, CUDA graphs captured."""
    prefill_stated: Cells | None = None
    """Cells of the texts that were read, each by itself, a layer and head: by the method's declaration or the
    model's config."""
    decode_stated: Cells | None = None
    """The same of the decode steps."""
    prefill_counted: Cells | None = None
    """Cells that were counted as a method computed them, over all layers and heads; what prompts share is
    read, and counted, once. A batch's are shared among its requests by their dense cells. None without a
    method."""
    decode_counted: Cells | None = None
    """The same of the decode steps."""
    responses: int = 0
    """Responses behind these figures; 0 in the cost of a single one."""
    device: str = ""
    """Name of the device that it was measured on, or all of their names with " and " between them."""

    def __add__(self, other: Cost) -> Cost:
        """The two together; a peak is the larger one."""
        return Cost(
            prefill_seconds=self.prefill_seconds + other.prefill_seconds,
            decode_seconds=self.decode_seconds + other.decode_seconds,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            new_tokens=self.new_tokens + other.new_tokens,
            peak_bytes=_either(max, self.peak_bytes, other.peak_bytes),
            kv_read=_either(int.__add__, self.kv_read, other.kv_read),
            kv_kept=_either(max, self.kv_kept, other.kv_kept),
            decode_steps=self.decode_steps + other.decode_steps,
            kv_read_bytes=_either(int.__add__, self.kv_read_bytes, other.kv_read_bytes),
            kv_kept_bytes=_either(max, self.kv_kept_bytes, other.kv_kept_bytes),
            warm_up_seconds=self.warm_up_seconds + other.warm_up_seconds,
            prefill_stated=_either(Cells.__add__, self.prefill_stated, other.prefill_stated),
            decode_stated=_either(Cells.__add__, self.decode_stated, other.decode_stated),
            prefill_counted=_either(Cells.__add__, self.prefill_counted, other.prefill_counted),
            decode_counted=_either(Cells.__add__, self.decode_counted, other.decode_counted),
            responses=self.responses + other.responses,
            device=_AND.join(sorted({*self.device.split(_AND), *other.device.split(_AND)} - {""})),
        )


class Response(BaseModel):
    """One finished request."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants")

    value: str | tuple[float, bool] | float
    """Reply of `generate_until`; (log-likelihood in nats, is greedy) of `loglikelihood`; nats of the whole
    text for `loglikelihood_rolling`; JSON of a look."""
    prompt_tokens: int = Field(ge=0)
    """Tokens that the model read as given, after any cut."""
    new_tokens: int = Field(ge=0)
    """Tokens generated (an end-of-text token counts), or scored."""
    finished: bool | None = None
    """Whether a reply ended by itself, not at its budget; None for scored text, and where nobody knows."""
    events: list[AuditEvent] = Field(default_factory=list)
    """What was done to this request's prompt; stored, so that a resumed run reports the same."""
    cost: Cost | None = Field(default=None, exclude=True, repr=False)
    """What it took; stored beside the rest, and not compared."""

    @field_validator("value", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        """JSON knows no tuples."""
        return tuple(value) if isinstance(value, list) else value

    def answers(self, kind: RequestKind) -> bool:
        """Whether the value is of the type that requests of this kind are answered with."""
        return isinstance(self.value, _ANSWERS[kind])

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, whatever it took."""
        if not isinstance(other, Response):
            return NotImplemented
        return self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # as pydantic's own models with list fields


def _either(join: Callable[[T, T], T], a: T | None, b: T | None) -> T | None:
    if a is None or b is None:
        return a if b is None else b
    return join(a, b)
