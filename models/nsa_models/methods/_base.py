"""What a sparse attention method is: its parameters, what it declares, and which keys a query reads."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from nsa_models.methods._block import QueryBlock
from nsa_models.methods._prompt import PromptRow

Phase: TypeAlias = Literal["prefill", "decode", "both"]


class MethodError(ValueError):
    """A method, a parameter of one, or a model that a method can't be attached to; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A sparse attention method with all of its parameters.

    A subclass is one public module of this package: a frozen, keyword-only dataclass whose docstring says
    what the method is, its paper, and each parameter with unit and default. It sets the class variables
    below, `select`, `kv_reads`, and whatever else differs from a method that keeps the whole cache. How much
    a query reads is a budget (`Budgeted`), or follows from parameters of another kind, named in `stated`.

    House rules, where papers are silent: ties go to the lower index, a key counts once in the softmax,
    page and block grids begin at a sequence's own first token.

    Attributes:
        dense_layers: Layers that are left dense, by index from 0.
    """

    name: ClassVar[str]
    """How configs and tables call it; its module may be spelled with underscores."""
    title: ClassVar[str]
    """One line for lists."""
    paper: ClassVar[str]
    """arXiv number."""
    phase: ClassVar[Phase]
    """Where it acts: "decode" leaves prompts dense, "prefill" leaves decode steps dense."""
    budget_unit: ClassVar[str]
    """What one unit of the budget is; of a method without one, what decides how much is read."""
    stated: ClassVar[tuple[str, ...]]
    """Fields that a label always tells: what decides how much is read."""
    per: ClassVar[Literal["query head", "KV head", "layer"]]
    """Who shares one selection: each query head has its own, a KV head's group one, or all heads one."""
    chunked_prefill: ClassVar[bool]
    """A prompt read in pieces gives what it gives as a whole. Where False, pieces are refused, and `plan`
    sees each prompt whole before its queries choose."""
    shared_prefixes: ClassVar[bool]
    """What was read of a prefix holds whatever follows it, so that prompts may share it."""
    lm_scores: ClassVar[bool]
    """Log-likelihoods of prompt tokens are a language model's: no choice looks at later tokens."""
    simulated: ClassVar[bool]
    """Quality only: the full cache is kept and masked, so neither time nor memory is saved."""
    takes_rotation_off: ClassVar[bool] = False
    """It needs queries and keys as they are before RoPE, so the rotary embedding may not scale them."""
    needs_rotary: ClassVar[bool] = False
    """It moves queries to other positions, so the model must have a rotary embedding that is understood."""
    rowwise: ClassVar[bool] = False
    """It takes one row at a time, and may remember what the row has read (`RowMethod`)."""
    version: ClassVar[int] = 1
    """Raise it when the same parameters can give another response than before."""

    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields that all methods share.

        Raises:
            MethodError: A field is of another type or out of its range.
        """
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if not _fits(getattr(self, field.name), hints[field.name]):
                self.refuse(field.name, f"must be {_wanted(hints[field.name])}")
        if list(self.dense_layers) != sorted(set(self.dense_layers)) or min(self.dense_layers, default=0) < 0:
            self.refuse("dense_layers", "must be rising layer numbers from 0")

    def refuse(self, field: str, what: str) -> None:
        """Raise the error for a field.

        Raises:
            MethodError: Always: "quest: page must be at least 1, got 0".
        """
        raise MethodError(f"{self.name}: {field} {what}, got {getattr(self, field)!r}")

    def redeclare(self, **declared: object) -> None:
        """Declare otherwise than the class does, for these parameters; called from `__post_init__` alone.

        `stated` may be among it, where one of two parameters decides.
        """
        for name, value in declared.items():
            assert name in (*DECLARATIONS, "stated"), name
            object.__setattr__(self, name, value)  # frozen; class variables are no fields

    def check_layers(self, layers: int, dense: Sequence[int]) -> None:
        """Refuse a model of so many layers, of which `dense` stay dense, where parameters don't fit it.

        Raises:
            MethodError: They don't.
        """
        return

    # --- what a query reads ---

    def plan(self, row: PromptRow) -> Any:  # noqa: ANN401 - a method's own
        """What is decided once for a prompt, layer by layer; `block.plans` hands it to `select`.

        Only methods that declare `chunked_prefill=False` are asked, in prefill.

        Args:
            row: All queries and keys of the prompt, at least one.
        """
        return None

    @abstractmethod
    def select(self, block: QueryBlock) -> Tensor:
        """The keys that a block of queries reads.

        Args:
            block: Queries and all keys of their rows. In a decode-only method it holds one query a row.

        Returns:
            Booleans [B, H or 1, n, S]: the set of each query (and head), within `block.visible`.
        """

    def logits(self, block: QueryBlock) -> Tensor:
        """Logits [B, H, n, S] of the softmax; only those of selected keys count."""
        return block.logits

    def values(self, block: QueryBlock, v: Tensor) -> Tensor:
        """Values [B, H_kv, S, d_v] that the block's weights are put on: v, unless the method changes them."""
        return v

    @abstractmethod
    def kv_reads(self, tokens: int) -> int:
        """KV tokens that the query at position tokens - 1 reads, per head and layer.

        Where heads differ it is the most that one can read.
        """

    def kv_reads_least(self, tokens: int) -> int:
        """As `kv_reads`, for the head that reads least; the same number unless the method says otherwise."""
        return self.kv_reads(tokens)

    def stated_reads(self, tokens: int, *, prompt: int, layer: int) -> tuple[int, int]:
        """Least and most KV tokens that the query at position tokens - 1 reads in one head of a layer.

        Args:
            tokens: The query's position + 1.
            prompt: Tokens that were read before the first decode step; a query before is a prompt's.
            layer: Index of the layer, one in which the method acts.
        """
        return self.kv_reads_least(tokens), self.kv_reads(tokens)

    def mean_reads(self, tokens: int, *, prompt: int, layer: int) -> float:
        """As `stated_reads`, on average over the heads: the most, unless the method knows better."""
        return self.stated_reads(tokens, prompt=prompt, layer=layer)[1]

    def vector_share(self, tokens: int, width: int) -> float:
        """Part of the elements of keys and values that tokens read or kept have left; width is a head's."""
        return 1.0

    def kv_kept(self, tokens: int) -> int:
        """KV tokens that the method keeps after `tokens` tokens, per KV head and layer. All by default."""
        return tokens

    def stated_kept(self, tokens: int, *, prompt: int) -> int:
        """As `kv_kept`, where the first `prompt` tokens were the prompt."""
        return self.kv_kept(tokens)

    def index_reads(self, tokens: int) -> int:
        """What choosing costs besides: vectors of a key's width, read by the query at position tokens - 1."""
        return 0

    # --- names and records ---

    def parameters(self) -> dict[str, Any]:
        """All fields by name, with the budget first, where there is one."""
        return {name: getattr(self, name) for name in field_types(type(self))}

    @property
    def label(self) -> str:
        """`quest@2560`, with every parameter that isn't at its default: `quest@2560-reading=kernel`.

        Without a budget, what decides in its place: `xattention@tau=0.9`. Letters, digits and `. _ - @ + =`
        only, so that it can name a file.
        """
        parts = [f"{self.name}@{self._stated()}"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in self.stated and value != field.default:
                parts.append(f"{field.name}={_written(value)}")
        return "-".join(parts)

    def _stated(self) -> str:
        return "+".join(f"{name}={_written(getattr(self, name))}" for name in self.stated)

    def describe(self) -> dict[str, Any]:
        """Every parameter and declaration as plain JSON: what a stored response depends on."""
        parameters = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in self.parameters().items()
        }
        declarations = {key: getattr(self, key) for key in DECLARATIONS}
        return {
            "method": self.name,
            "label": self.label,
            "parameters": parameters,
            "declarations": declarations,
        }


@dataclass(frozen=True, kw_only=True)
class Budgeted(Method):
    """A method that reads a fixed number of KV tokens.

    Attributes:
        budget: KV tokens that a query reads per layer and head; `budget_unit` says what else it means.
    """

    stated: ClassVar[tuple[str, ...]] = ("budget",)
    whole: ClassVar[str] = ""
    """The field of whose value a budget must be a multiple; none: any number will do."""
    of_context: ClassVar[bool] = True
    """The budget is of the context's tokens, so that it may be a share of a prompt's."""

    budget: int

    def __post_init__(self) -> None:
        """Check the fields that all methods share.

        Raises:
            MethodError: A field is of another type or out of its range.
        """
        super().__post_init__()
        if self.budget < 1:
            self.refuse("budget", "must be at least 1 KV token")

    def _stated(self) -> str:
        return str(self.budget)


DECLARATIONS = (
    "title",
    "paper",
    "phase",
    "budget_unit",
    "per",
    "chunked_prefill",
    "shared_prefixes",
    "lm_scores",
    "simulated",
    "version",
)
"""Class variables of a method that records carry."""


def field_types(method: type[Method]) -> Mapping[str, Any]:
    """A method's fields and their types, in the order in which they are shown: the budget first."""
    hints = get_type_hints(method)
    names = sorted((field.name for field in dataclasses.fields(method)), key=lambda name: name != "budget")
    return MappingProxyType({name: hints[name] for name in names})


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401 - a type, or a form of `typing`
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is Union:
        return any(_fits(value, one) for one in get_args(kind))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _wanted(kind: Any) -> str:  # noqa: ANN401 - as in `_fits`
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list of whole numbers"
    return {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}.get(
        kind, str(kind)
    )


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
