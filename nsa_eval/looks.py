"""Where a model looked, as plain data: what a worker finds in one prompt, and the looks.json of a variant.

A look is made of a prompt that holds its answers (`TaskFamily.evidence`): which blocks the queries at the
prompt's end chose, in every layer and KV group of Native Sparse Attention, and whether those hold the
answers. Two things are told. Selection recall is the share of layers and groups that hold the whole answer
when the reply begins. And whether the model could have copied the answer: each token of it, at the query that
predicts it when the right reply is read so far, from a block that at least one group of one layer chose. What
the model wrote itself is not read: behind its first mistake it would say nothing of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from nsa_eval._json import read_mapping
from nsa_eval.errors import UserError

FILE = "looks.json"
"""Its name in a variant's folder."""
QUERIES = 40
"""Queries of a picture, up to the prompt's last: of a needle's question and the answer's beginning."""
COLUMNS = 96
"""Columns of a picture at most: each is a block, or where there are more, some neighbours."""
PICTURES = 2
"""Pictures of a length at most: a document that was answered right, and one that wasn't."""


_ANEW = "Remove it and run again: finished looks are kept."


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BlockGrid(_Plain):
    """What is chosen from, and by how many."""

    layers: int
    groups: int
    """KV groups of a layer; each chooses for itself."""
    select_block: int
    """l', tokens of a block."""
    select_count: int
    """n, blocks that a query chooses, the forced ones among them."""
    first_blocks: int
    """Forced blocks from the first on."""
    last_blocks: int
    """Forced blocks up to a query's own."""
    window: int
    """w, tokens of the sliding window."""

    @property
    def choices(self) -> int:
        """Layers times groups."""
        return self.layers * self.groups

    @property
    def reach(self) -> int:
        """n * l': prompts of so many tokens have every block chosen."""
        return self.select_count * self.select_block

    def forced(self, position: int) -> set[int]:
        """Blocks that the query at a position chooses whatever their scores."""
        own = position // self.select_block
        return {*range(min(self.first_blocks, own + 1)), *range(max(0, own - self.last_blocks + 1), own + 1)}


class AnswerLook(_Plain):
    """One answer, and which layers and groups had chosen it when the reply began."""

    first: int
    """Place of its first token in the prompt."""
    last: int
    """Place of its last one."""
    blocks: tuple[int, ...]
    """Blocks in which its tokens lie."""
    held: tuple[int, ...]
    """For each layer, groups that chose all of these blocks when the reply began: at the prompt's last query,
    which predicts the reply's first token."""
    by_token: tuple[int, ...]
    """For each token of the right reply, layers and groups that chose the block to copy it from, at the query
    that predicts it after those before it."""
    forced: bool
    """Whether all of these blocks are forced: then every layer and group holds it without choosing."""
    in_window: bool
    """Whether the sliding window reaches all of its tokens too."""


class Picture(_Plain):
    """The queries at a prompt's end, and what they chose."""

    columns: tuple[tuple[int, int], ...]
    """(first block, last block) of each column."""
    rows: tuple[tuple[int, ...], ...]
    """For each query, how many layers and groups chose a block of the column."""
    tokens: tuple[str, ...]
    """The queries' own tokens."""
    asked: int
    """How many of the queries are the prompt's; those after them are the right reply's."""


class Look(_Plain):
    """What was found in one prompt."""

    grid: BlockGrid
    prompt_tokens: int
    answers: tuple[AnswerLook, ...] = Field(min_length=1)
    picture: Picture | None = None

    @property
    def share(self) -> float:
        """Selection recall: share of layers and groups whose blocks hold an answer, over all answers."""
        return sum(sum(answer.held) for answer in self.answers) / (len(self.answers) * self.grid.choices)

    @property
    def by_layer(self) -> tuple[float, ...]:
        """The same of each layer."""
        whole = len(self.answers) * self.grid.groups
        return tuple(
            sum(answer.held[layer] for answer in self.answers) / whole for layer in range(self.grid.layers)
        )

    @property
    def found(self) -> bool:
        """Whether a group of some layer holds each token of each answer when it is to be predicted."""
        return all(all(answer.by_token) for answer in self.answers)

    @property
    def always(self) -> bool:
        """Whether the answers were chosen without a choice: forced, or in a prompt that is chosen whole."""
        reply = max(len(answer.by_token) for answer in self.answers)
        return self.prompt_tokens + reply <= self.grid.reach or all(answer.forced for answer in self.answers)

    @property
    def in_window(self) -> bool:
        """Whether the window branch read all answers, chosen or not."""
        return all(answer.in_window for answer in self.answers)


class NotLooked(_Plain):
    """A document that was to be looked at, and why it wasn't."""

    why: str


class LooksSheet(_Plain):
    """looks.json of one variant."""

    per_cell: int
    """Documents of each cell that were asked for."""
    why_not: str = ""
    """Why nothing was looked at, where nothing can be."""
    seconds: float = 0.0
    """What it took, on top of the run's costs."""
    tasks: dict[str, dict[str, Look | NotLooked]] = {}
    """By task and document."""

    def of(self, task: str) -> dict[str, Look]:
        """The looks of a task, by document."""
        found = self.tasks.get(task, {})
        return {document: look for document, look in found.items() if isinstance(look, Look)}

    def left_out(self, task: str) -> dict[str, str]:
        """Documents of a task that weren't looked at, with the reason."""
        found = self.tasks.get(task, {})
        return {document: look.why for document, look in found.items() if isinstance(look, NotLooked)}


def read_looks(file: Path) -> LooksSheet:
    """The looks of a variant.

    Raises:
        UserError: The file is damaged.
    """
    try:
        return LooksSheet.model_validate(read_mapping(file, _ANEW))
    except ValueError as error:
        raise UserError(f"{file}: damaged ({str(error).splitlines()[0]}). {_ANEW}") from error


def answered_right(
    metrics: Mapping[str, float], listed: Sequence[str], higher_is_better: Mapping[str, bool | None]
) -> bool | None:
    """Whether a document was answered fully right: its first metric of which more is better is 1.

    Args:
        metrics: The document's scores.
        listed: The task's metrics, the main one first.
        higher_is_better: By metric.

    Returns:
        None where it has no such score.
    """
    for name in listed:
        if name in metrics and higher_is_better.get(name):
            return metrics[name] >= 1
    return None
