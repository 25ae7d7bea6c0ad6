"""Attaching a method to a loaded model, and taking it off again."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.methods._base import Method, MethodError
from nsa_models.methods._beside import Held
from nsa_models.methods._block import Rotate, attend
from nsa_models.methods._listed import attend_by_lists, backend_of_model, listed, step_by_lists
from nsa_models.methods._memory import Memories
from nsa_models.methods._paged import KeptPages, Paged, step_by_pages
from nsa_models.methods._placement import Placement
from nsa_models.methods._prompt import prompt_rows, whole
from nsa_models.methods._reads import Now, Reads
from nsa_models.methods._rowlisted import RowListed
from nsa_models.methods._rowmethod import RowMethod
from nsa_models.methods._rowwise import attend_rows, attend_rows_by_lists, observe_rows

_attached: weakref.WeakKeyDictionary[PreTrainedModel, Attached] = weakref.WeakKeyDictionary()


class Attached(ABC):
    """A method on a model. `attach` makes it; leaving its `with` block, or `detach()`, takes the method off.

    **The phase has to be told.** A prompt's last piece may be one token and a step may follow a piece of any
    length, so neither shapes nor the cache say whether a forward reads a prompt or decodes. It is "prefill"
    until `decoding()` says otherwise; whoever decodes wraps each step in it.

    **What a method remembers of rows goes with their cache.** A method that takes one row at a time
    (`Method.rowwise`) remembers what each has read. Whoever copies, joins or drops rows of a cache asks for
    `fresh` memories, hands them to `prefilling` and `decoding`, and does to them what is done to the cache.
    Without, the handle keeps those of one batch, anew when its rows begin, which is enough for `generate()`.
    A row that doesn't go on where its memory ends is an error.

    Attributes:
        method: The method.
        layers: Layers in which it chooses, by index.
        dense_layers: The others: those that the method leaves dense, and those of a kind that it can't take.
        notes: What a table must say, a sentence each.
        reads: Exact counts of KV tokens read.
    """

    method: Method
    layers: tuple[int, ...]
    dense_layers: tuple[int, ...]
    notes: tuple[str, ...]
    reads: Reads

    def __init__(
        self,
        model: PreTrainedModel,
        method: Method,
        *,
        num_layers: int,
        unfit: dict[int, str],
        auto_phase: Literal["generate"] | None,
    ) -> None:
        """Choose the layers; nothing of the model changes yet.

        Args:
            model: The model.
            method: The method.
            num_layers: Its layers.
            unfit: Layers that stay dense because of their kind, with the kind.
            auto_phase: See `attach`.

        Raises:
            MethodError: No layer is left for the method, it names one that the model doesn't have, or kernels
                are to run it that don't take the model.
        """
        # Not the model itself: the map from modules to handles would keep it alive for ever.
        self._model = weakref.ref(model)
        self.method = method
        self.auto_phase = auto_phase
        self._unfit = unfit
        asked = [layer for layer in method.dense_layers if layer < num_layers]
        self.dense_layers = tuple(sorted({*asked, *unfit}))
        self.layers = tuple(layer for layer in range(num_layers) if layer not in self.dense_layers)
        if not self.layers:
            why = (
                f"{method.name} leaves {_numbers(asked)} dense"
                if asked
                else "none of its layers is full attention"
            )
            raise MethodError(
                f"{method.name}: nothing would be sparse in {name_of(model)} of {num_layers} "
                f"layer{'s' if num_layers > 1 else ''}: {why}; set dense_layers (none leaves no layer dense)"
            )
        beyond = [layer for layer in method.dense_layers if layer >= num_layers]
        if beyond:
            raise MethodError(
                f"{method.name}: dense_layers names {_numbers(beyond)}, and {name_of(model)} has "
                f"{num_layers} layers, counted from 0"
            )
        notes = [f"{_numbers(asked)} dense, as {method.name} asks"] if asked else []
        for kind in sorted(set(unfit.values())):
            numbers = [layer for layer, other in unfit.items() if other == kind]
            notes.append(f"{_numbers(numbers)} dense: {kind}")
        by_lists = listed(method)
        if by_lists is not None:
            backend = backend_of_model(by_lists, model)
            notes.append(f"chosen blocks are read by kernels over lists of them (fast, backend {backend})")
        self.notes = tuple(notes)
        self.reads = Reads()
        self._phase: Now = "prefill"
        self._counts: list[int] | None = None
        self._rotations: dict[int, Rotate] = {}
        method.check_layers(num_layers, self.dense_layers)
        self._told_memories: Memories | None = None
        self._memories = Memories.fresh(0)
        self._continued = True
        self._kept = KeptPages()

    @property
    def model(self) -> PreTrainedModel:
        """The model.

        Raises:
            MethodError: It is gone.
        """
        model = self._model()
        if model is None:
            raise MethodError(f"{self.method.name}: the model that it was attached to no longer exists")
        return model

    @property
    def attached(self) -> bool:
        """Whether the method is still on the model."""
        model = self._model()
        return model is not None and _attached.get(model) is self

    @property
    def phase(self) -> Now:
        """What the next forward is, as told."""
        return self._phase

    def fresh(self, rows: int) -> Memories | None:
        """Memories of rows that have read nothing, where the method keeps any."""
        return Memories.fresh(rows) if self.method.rowwise else None

    @contextmanager
    def decoding(
        self, counts: list[int] | None = None, memories: Memories | None = None
    ) -> Iterator[Attached]:
        """Say that forwards inside are decode steps; args as in `prefilling`."""
        with self._told("decode", counts, memories):
            yield self

    @contextmanager
    def prefilling(
        self,
        counts: list[int] | None = None,
        memories: Memories | None = None,
        *,
        continued: bool = True,
    ) -> Iterator[Attached]:
        """Say that the forward inside reads a piece of the prompts.

        Args:
            counts: Tokens of each row in this forward, where right padding follows them that the mask doesn't
                show. Only the counts of reads depend on it: no token sees the padding behind it.
            memories: What is remembered of the rows, in their order.
            continued: Whether anything goes on from the rows: without, nothing is taken note of.
        """
        with self._told("prefill", counts, memories, continued=continued):
            yield self

    @contextmanager
    def _told(
        self, phase: Now, counts: list[int] | None, memories: Memories | None, *, continued: bool = True
    ) -> Iterator[None]:
        before = self._phase, self._counts, self._told_memories, self._continued
        self._phase, self._counts, self._told_memories, self._continued = phase, counts, memories, continued
        try:
            yield
        finally:
            self._phase, self._counts, self._told_memories, self._continued = before

    def detach(self) -> None:
        """Take the method off; the model then works exactly as before. Doing it twice does nothing.

        What was read stays counted in `reads`; what is known of rows and keys is let go.
        """
        model = self._model()
        if model is not None and self.attached:
            self._remove(model)
            del _attached[model]
        self._memories, self._kept = Memories.fresh(0), KeptPages()

    def __enter__(self) -> Attached:
        """The handle itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the method off."""
        self.detach()

    @abstractmethod
    def _install(self, model: PreTrainedModel) -> None:
        """Lead the model's attention here, and find its rotations if the method needs them."""

    @abstractmethod
    def _remove(self, model: PreTrainedModel) -> None:
        """Undo `_install`."""

    # --- what both kinds of models do ---

    def _now(self, queries: int, keys: int) -> Now:
        """The phase of a forward."""
        if self.auto_phase == "generate":
            return "decode" if queries == 1 and keys > 1 else "prefill"
        return self._phase

    def _acts(self, layer: int, phase: Now) -> bool:
        return layer in self.layers and self.method.phase in ("both", phase)

    def _sparse(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        place: Placement,
        *,
        scaling: float,
        layer: int,
        phase: Now,
        held: Held,
    ) -> Tensor:
        """Attend by the method and count; q [B, H, n, d], k and v in order of positions."""
        rotate = self._rotations.get(layer)
        if isinstance(self.method, RowMethod):
            given: Any = {
                "scaling": scaling, "layer": layer, "rotate": rotate, "phase": phase,
                "deepest": layer == max(self.layers),
            }  # fmt: skip
            memories = self._memories_of(q.shape[0])
            if isinstance(self.method, RowListed) and self.method.fast:
                out, read = attend_rows_by_lists(self.method, q, k, v, place, memories, **given)
            else:
                out, read = attend_rows(self.method, q, k, v, place, memories, **given)
        else:
            plans = self._plans(q, k, place, scaling=scaling, layer=layer, phase=phase)
            by_lists = listed(self.method)
            if by_lists is None:
                out, read = attend(
                    self.method, q, k, v, place, scaling=scaling, layer=layer, rotate=rotate, plans=plans
                )
            elif isinstance(by_lists, Paged):
                out, read = step_by_pages(
                    by_lists, q, k, v, place,
                    scaling=scaling, layer=layer, held=held, kept=self._kept, reads=self.reads,
                )  # fmt: skip
            elif phase == "decode" and q.shape[2] == 1:
                out, read = step_by_lists(by_lists, q, k, v, place, scaling=scaling)
            else:
                out, read = attend_by_lists(by_lists, q, k, v, place, scaling=scaling, plans=plans)
        self._count(q, place, read, layer=layer, phase=phase, sparse=True)
        return out

    def _watches(self, layer: int) -> bool:
        """Whether the method wants to see a prompt's queries in this layer, which it leaves dense."""
        acts_later = isinstance(self.method, RowMethod) and self.method.phase == "decode"
        return acts_later and layer in self.layers and self._continued

    def _watch(
        self, q: Tensor, k: Tensor, place: Placement, *, scaling: float, layer: int, phase: Now
    ) -> None:
        """Show the method a piece of the prompts that stays dense; k in order of positions."""
        assert isinstance(self.method, RowMethod)
        observe_rows(
            self.method, q, k, place, self._memories_of(q.shape[0]),
            scaling=scaling, layer=layer, rotate=self._rotations.get(layer), phase=phase,
            deepest=layer == max(self.layers),
        )  # fmt: skip

    def _memories_of(self, rows: int) -> Memories:
        """What was told, or the handle's own."""
        if self._told_memories is not None:
            return self._told_memories
        if len(self._memories.rows) != rows:
            self._memories = Memories.fresh(rows)
        return self._memories

    def _plans(
        self, q: Tensor, k: Tensor, place: Placement, *, scaling: float, layer: int, phase: Now
    ) -> list[Any] | None:
        """What the method decides for whole prompts; None if it takes them in pieces, or lists by itself.

        Raises:
            MethodError: A piece of a prompt arrived.
        """
        if phase == "decode" or self.method.chunked_prefill:
            return None
        if not whole(place):
            raise MethodError(
                f"{self.method.name}: it needs a prompt whole, and this one came in pieces; read it in one "
                "forward with an empty cache, and wrap decode steps in decoding()"
            )
        by_lists = listed(self.method)
        if by_lists is not None and by_lists.lists_by_itself:
            return None
        rotate = self._rotations.get(layer)
        rows = prompt_rows(q, k, place, scaling=scaling, layer=layer, rotate=rotate)
        return [None if row is None else self.method.plan(row) for row in rows]

    def _count(
        self, q: Tensor, place: Placement, read: Tensor | None, *, layer: int, phase: Now, sparse: bool
    ) -> None:
        """Count the reads of one layer; read=None is dense attention."""
        heads, dense = q.shape[1], place.dense_reads()
        self.reads.add(
            layer=layer,
            phase=phase,
            sparse=sparse,
            heads=heads,
            queries=place.queries(),
            read=dense * heads if read is None else read,
            dense=dense,
        )


def register(model: PreTrainedModel, attached: Attached) -> None:
    """Remember what is on a model."""
    _attached[model] = attached


def attached_to(model: PreTrainedModel) -> Attached | None:
    """The handle of the method that is on `model`, or on another one that shares its config object."""
    for other, attached in list(_attached.items()):
        # The name of the attention stands in the config: detaching one model would change the other.
        if other is model or other.config is model.config:
            return attached
    return None


def name_of(model: PreTrainedModel) -> str:
    return str(getattr(model.config, "_name_or_path", "") or type(model).__name__)


def _numbers(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) != 1 else ''} {', '.join(map(str, layers))}"
