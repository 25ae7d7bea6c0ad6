"""What a variant's answers took, as costs.json has it: by task, by length, and on what they were measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nsa_eval.store._records import Cost, RequestKind, Response

CostKind = Literal["reply", "scored"]
"""Replies are read and then decoded; scored text is only read."""


class Conditions(BaseModel):
    """On what costs were measured. Figures of different devices are never set beside each other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device_name: str
    """As its driver says, or the processor's model name."""
    device: str
    """Its type: cpu, cuda."""
    dtype: str
    backend: str
    """What computed the attention."""
    batch_size: str
    """As it was asked: auto, or rows."""
    weights_bytes: int
    """Of the model's parameters and buffers, which are part of every peak."""
    device_bytes: int | None = None
    """Memory of the device in all."""
    cuda_graphs: bool = False
    """Whether decode steps could come from CUDA graphs."""
    share_prefixes: bool = True
    """Whether what prompts share is read once: a prompt's seconds then depend on its company."""


class LengthCost(BaseModel):
    """All answers to texts of about one length, over all tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: CostKind
    up_to: int = Field(ge=1)
    """Tokens: a power of 2, at least the length of these and less than twice that of the shortest. A reply's
    length is its prompt's."""
    longest: int = Field(ge=0)
    """Tokens of the longest row, its reply among them."""
    cost: Cost

    @property
    def tokens(self) -> float:
        """Mean length of the texts that were read."""
        read = self.cost.prompt_tokens + (self.cost.new_tokens if self.kind == "scored" else 0)
        return read / max(1, self.cost.responses)


class CostSheet(BaseModel):
    """costs.json of one variant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conditions: Conditions | None = None
    """None where an older version wrote it."""
    tasks: dict[str, Cost] = {}
    lengths: tuple[LengthCost, ...] = ()
    by_length: dict[str, dict[int, Cost]] = {}
    """Of each task whose documents have lengths (a grid's, a suite's), by that length in tokens."""


class Tally:
    """Adds up costs as answers come."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._tasks: dict[str, Cost] = {}
        self._lengths: dict[tuple[CostKind, int], tuple[int, Cost]] = {}
        self._documents: dict[tuple[str, int], Cost] = {}

    def add(self, task: str, kind: RequestKind, response: Response, *, document: int | None = None) -> None:
        """Count one response, to a document of its task; nothing where its cost isn't known."""
        if response.cost is None:
            return
        cost = response.cost.model_copy(update={"responses": 1})
        self._tasks[task] = self._tasks.get(task, Cost()) + cost
        if document is not None:
            self._documents[task, document] = self._documents.get((task, document), Cost()) + cost
        which: CostKind = "reply" if kind == "generate_until" else "scored"
        read = cost.prompt_tokens + (cost.new_tokens if which == "scored" else 0)
        place = (which, 1 << max(0, read - 1).bit_length())
        longest, before = self._lengths.get(place, (0, Cost()))
        self._lengths[place] = max(longest, cost.prompt_tokens + cost.new_tokens), before + cost

    @property
    def tasks(self) -> dict[str, Cost]:
        """By task, in the order in which they were asked."""
        return dict(self._tasks)

    def sheet(
        self, conditions: Conditions, lengths: Mapping[str, Mapping[int, int]] | None = None
    ) -> CostSheet:
        """All of it.

        A run that was continued on another device has the names of both: its costs are those of neither.

        Args:
            conditions: On what costs were measured.
            lengths: Length of each document, by task and number, for the costs by length.
        """
        devices = sum(self._tasks.values(), start=Cost()).device
        if devices:
            conditions = conditions.model_copy(update={"device_name": devices})
        rows = [
            LengthCost(kind=kind, up_to=up_to, longest=longest, cost=cost)
            for (kind, up_to), (longest, cost) in sorted(self._lengths.items())
        ]
        by_length: dict[str, dict[int, Cost]] = {}
        for task, of_documents in (lengths or {}).items():
            found: dict[int, Cost] = {}
            for document, length in sorted(of_documents.items(), key=lambda item: item[1]):
                cost = self._documents.get((task, document))
                if cost is not None:
                    found[length] = found.get(length, Cost()) + cost
            by_length |= {task: found} if found else {}
        return CostSheet(conditions=conditions, tasks=self.tasks, lengths=tuple(rows), by_length=by_length)
