"""What the store keeps for one request, and the events that a reader of the scores has to know about."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

EventKind = Literal["truncated", "double_bos", "default_max_length", "uncached"]


class AuditEvent(BaseModel):
    """Something done to a prompt, or assumed about a model, that can move a score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: EventKind
    """`truncated`: tokens cut from a prompt; `double_bos`: the prompt brought its own BOS;
    `default_max_length`: neither model nor tokenizer says how long a prompt may be; `uncached`: replies were
    made without a cache, which is slow."""
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


class Response(BaseModel):
    """One finished request."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    value: str | tuple[float, bool] | float
    """Reply of `generate_until`; (log-likelihood in nats, is greedy) of `loglikelihood`; nats of the whole
    text for `loglikelihood_rolling`."""
    prompt_tokens: int
    """Tokens that the model read as given, after any cut."""
    new_tokens: int
    """Tokens generated (an end-of-text token counts), or scored."""
    events: list[AuditEvent] = Field(default_factory=list)
    """What was done to this request's prompt; stored, so that a resumed run reports the same."""
