"""What the engine may rely on for a model, whatever its architecture: a family's declarations and duties."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nsa_models.checkpoints import ModelLoadError
from nsa_models.families._frequencies import Frequencies
from nsa_models.methods import Memories
from nsa_models.shortage import one_kind_of_shortage


class FamilyError(ModelLoadError):
    """A model that loads, but whose logits wouldn't be a causal language model's; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something about how a model is run that a reader of its scores should know."""

    kind: str
    """Kind of the audit event, e.g. "uncached"."""
    detail: str
    """One sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restrictions:
    """What something attached to a model (a sparse attention method) takes away from its family's abilities.

    Decoding one token at a time from a cache is never restricted: a method that couldn't do that is none.
    """

    continuable: bool = True
    """A prompt may be read in pieces."""
    shared: bool = True
    """The cache of a prefix may be copied for several prompts."""
    graphs: bool = True
    """Decode steps may be replayed from a CUDA graph."""
    either_phase: bool = True
    """A token is the same whether a prompt or a step reads it. Otherwise no step may read the end of a
    prompt, and a reply that was taken out begins anew: what it had isn't a prompt."""
    slots: bool = True
    """Rows may decode in slots of fixed shapes."""


@dataclass(slots=True, kw_only=True)
class Rows:
    """What a model has read of B rows so far, and can go on from."""

    cache: Any
    """The model's cache, in whatever class it keeps it; None before the first forward."""
    lengths: list[int]
    """Tokens read of each row."""
    mask: Tensor | None = None
    """[B, S] cache columns that hold a token, or None when all of them do."""
    history: list[Tensor] | None = None
    """The tokens read of each row, [lengths[b]], where no cache remembers them."""
    room: int = 0
    """Tokens that a row will get at least, where that is known before the first forward."""
    memories: Memories | None = None
    """What a sparse method remembers of the rows, where it does; whoever feeds them copies and joins it."""
    kept: bool = True
    """Whether anything goes on from these rows: without, a family may leave out of their cache what the next
    forward reads."""


class Slots(Protocol):
    """Decodes up to R rows in steps of fixed shapes; rows come and go between steps."""

    tokens: Tensor
    """[R] int64 on the device: what the next step feeds; anything in a slot without a row."""

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph."""
        ...

    def admit(self, slot: int, rows: Rows, row: int) -> None:
        """Put row `row` of `rows`, which go on existing, into a slot without a row."""
        ...

    def release(self, slot: int) -> None:
        """Take the row out of a slot."""
        ...

    def kept(self, rows: Rows | None) -> int | None:
        """Tokens of cache that rows in slots and `rows` keep, and the room of all slots; None: unknown."""
        ...

    def step(self) -> Tensor:
        """Feed `tokens`, one to every row; logits [R, V] of the next, good until the next step."""
        ...


class Family(ABC):
    """One way of batching and continuing the rows of a model; `family_of` picks it."""

    name: ClassVar[str]
    """What it is called in reports of what was found."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Declare the least; subclasses and `family_of` raise it to what was found to hold."""
        self.model = model
        self.ragged = False
        """Rows of different lengths may share a batch that is continued."""
        self.padded = True
        """Rows of different lengths may share a batch that nothing continues: no token sees the padding."""
        self.continuable = False
        """A forward of several tokens may continue a cache (chunked prefill). One token always may."""
        self.shared = False
        """The cache of a prefix may be copied, and each copy continued by several tokens."""
        self.copies = True
        """`select` copies what was read. Otherwise a prefix is there once, whoever goes on from it."""
        self.packs = False
        """A forward takes rows of any lengths without padding."""
        self.refills = False
        """Rows may join others that decode already, and neither pays for it."""
        self.caches = True
        """What was read isn't read again. Without it a decode step costs as much as reading the whole row."""
        self.resume_tokens = 8
        """What going on from a cache with a few tokens costs a row, in tokens of plain prefill."""
        self.cache_bytes = 1
        """Bytes of cache that a token of a row adds; an upper bound beyond a sliding window."""
        self.frequencies = Frequencies.of(model)
        """Lengths of a forward at which its positional frequencies change."""
        self.plain: dict[str, Any] = {}
        """Arguments of a forward that neither reads nor makes a cache."""
        self.notes: tuple[Note, ...] = ()
        """What a reader of replies from this model should know."""

    @abstractmethod
    def empty(self, rows: int) -> Rows:
        """`rows` rows that have read nothing."""

    def inputs(self, tokens: Tensor, counts: list[int], rows: Rows | None) -> dict[str, Any]:
        """Arguments of the next forward, in which row b reads the first counts[b] of right-padded `tokens`.

        Frequencies that earlier forwards have moved are put back, so that none depends on what was asked
        before it.

        Args:
            tokens: [B, N] ids.
            counts: Tokens of each row; 0 for a row that has ended.
            rows: What was read before; None when nothing was, and nothing is to be kept.
        """
        self.frequencies.reset()
        if rows is None:
            return {"input_ids": tokens, **self.plain}
        return self._continued(tokens, counts, rows)

    def places(self, wanted: Tensor, counts: list[int], rows: Rows | None) -> Tensor:
        """Where places of the tokens given are among the columns of that forward.

        Args:
            wanted: [B, N] bool, within each row's counts[b].
            counts: Tokens of each row.
            rows: As for `inputs`, before `absorb`.

        Returns:
            [B, W] bool.
        """
        return wanted

    def forward(self, given: dict[str, Any], *, module: nn.Module | None = None) -> Any:  # noqa: ANN401
        """Run the forward whose arguments `inputs` made.

        Args:
            given: What `inputs` returned, with arguments of the caller's beside it.
            module: A part of the model to run instead: its decoder without the head.

        Returns:
            A ModelOutput.

        Raises:
            torch.OutOfMemoryError: A lack of memory, whoever met it.
        """
        with one_kind_of_shortage():
            return (module or self.model)(**given)

    @abstractmethod
    def absorb(self, output: Any, tokens: Tensor, counts: list[int], rows: Rows) -> None:  # noqa: ANN401 - a ModelOutput
        """Keep in `rows` what that forward gave."""

    @abstractmethod
    def select(self, rows: Rows, indices: list[int]) -> Rows:
        """Rows `indices` (repeats allowed) as new rows; the old ones stay as they are."""

    def join(self, parts: list[Rows]) -> Rows:
        """All rows as one batch, in order; ragged families only. The parts are used up."""
        raise NotImplementedError(f"{type(self).__name__} doesn't join rows of different lengths")

    def slots(self, count: int, *, longest: int, room: int, graphs: bool) -> Slots | None:
        """Room for rows that decode in steps of fixed shapes, where there are such and they help.

        Args:
            count: R, rows at most.
            longest: Tokens of the longest row when it is admitted.
            room: Tokens that a row may get from then on.
            graphs: Whether steps may be replayed from a CUDA graph.

        Raises:
            torch.OutOfMemoryError: Not so much room; ask for fewer rows.
        """
        return None

    def size_of(self, rows: Rows) -> int:
        """Bytes of what rows have read."""
        return cache_size(rows.cache)

    def first_forward(self, length: int) -> int:
        """Tokens that the first forward of a row of `length` tokens must read at least.

        All of them where no cache is continued by several; else what its frequencies ask for.
        """
        return self.frequencies.first_forward(length) if self.continuable else length

    @abstractmethod
    def _continued(self, tokens: Tensor, counts: list[int], rows: Rows) -> dict[str, Any]:
        """`inputs` for rows that are kept."""


def stacked(parts: list[Tensor], axis: int) -> Tensor:
    """Tensors of B_i rows each as one of sum(B_i), shorter ones filled up with zeros at the end of `axis`."""
    width = max(part.shape[axis] for part in parts)
    first = parts[0]
    shape = list(first.shape)
    shape[0], shape[axis] = sum(part.shape[0] for part in parts), width
    whole = first.new_zeros(shape)
    row = 0
    for part in parts:
        whole[row : row + part.shape[0]].narrow(axis, 0, part.shape[axis]).copy_(part)
        row += part.shape[0]
    return whole


def check_room(size: int, device: torch.device) -> None:
    """Find out whether so many bytes can be had; buffers are made when the first row tells their shapes.

    Raises:
        torch.OutOfMemoryError: They can't.
    """
    if device.type == "cuda":
        torch.empty(
            size, dtype=torch.uint8, device=device
        )  # freed at once, and kept by torch for the buffers


def right_padded(rows: Sequence[Tensor]) -> Tensor:
    """Token ids of rows [n_b] as one tensor [B, max n], zeros behind the shorter ones."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def cache_size(cache: Any) -> int:  # noqa: ANN401 - a cache of any class
    """Bytes of all tensors in a cache."""
    seen: set[int] = set()
    stack = [cache]
    total = 0
    while stack:
        part = stack.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            total += part.numel() * part.element_size()
        elif isinstance(part, dict):
            stack.extend(part.values())
        elif isinstance(part, (list, tuple)):
            stack.extend(part)
        elif "cache" in type(part).__module__ or "modeling_" in type(part).__module__:
            stack.extend(vars(part).values())
    return total
