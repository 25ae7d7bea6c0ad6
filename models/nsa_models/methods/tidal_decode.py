"""TidalDecode: two layers choose keys by full attention, and the others read the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from nsa_models.methods._base import MethodError, Phase
from nsa_models.methods._block import QueryBlock, keep_top
from nsa_models.methods._rowmethod import RowMethod, memory_of

_CHOSEN = "chosen"


@dataclass(frozen=True, kw_only=True)
class TidalDecode(RowMethod):
    """TidalDecode: keys chosen once or twice a step, for all layers (arXiv 2410.05076).

    In decode, the layers of `choosing` attend to all keys, and each query head keeps the highest q.k; every
    layer behind reads what the last of them kept, head by head. The query's own token is read only if it is
    among them. Prompts are read dense.

    Attributes:
        budget: KV tokens that a query reads in a layer that doesn't choose, per head. The authors' default is
            256; their LongBench runs have 4096.
        choosing: Layers that read everything and choose. Default 2 and 13 (the authors', for 32 layers; two
            of their files have 9 for 13).
        dense_layers: Layers left dense; those before the first that chooses must be. Default 0 and 1.
    """

    name: ClassVar[str] = "tidal-decode"
    title: ClassVar[str] = "TidalDecode: highest q.k of two layers, read by all others, in decode"
    paper: ClassVar[str] = "2410.05076"
    phase: ClassVar[Phase] = "decode"
    budget_unit: ClassVar[str] = "KV tokens read per decoded query and head in layers that don't choose"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True

    choosing: tuple[int, ...] = (2, 13)
    dense_layers: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: Nobody chooses, a layer that chooses is dense, or one before the first isn't.
        """
        super().__post_init__()
        if not self.choosing or list(self.choosing) != sorted({*self.choosing}) or self.choosing[0] < 0:
            self.refuse("choosing", "must be rising layer numbers from 0, one at least")
        if {*self.choosing} & {*self.dense_layers}:
            self.refuse("choosing", "must not name dense layers")
        if not {*range(self.choosing[0])} <= {*self.dense_layers}:
            self.refuse(
                "dense_layers", f"must have all layers before {self.choosing[0]}, the first that chooses"
            )

    def check_layers(self, layers: int, dense: Sequence[int]) -> None:
        """Each layer that chooses must be there, and none of a kind that stays dense.

        Raises:
            MethodError: One isn't.
        """
        for layer in self.choosing:
            if layer >= layers or layer in dense:
                why = f"the model has {layers}" if layer >= layers else "it stays dense in this model"
                raise MethodError(
                    f"{self.name}: layer {layer} can't choose: {why}; set choosing, such as choosing=2"
                )

    def select(self, block: QueryBlock) -> Tensor:
        """[1, H, 1, S]."""
        memory = memory_of(block)
        if block.layer in self.choosing:
            # The scale is one number for all keys, and positive.
            memory.step[_CHOSEN] = keep_top(block.logits, self.budget, block.visible)
            return block.visible
        chosen: Tensor | None = memory.step.get(_CHOSEN)
        if chosen is None or chosen.shape[-1] != block.k.shape[2]:
            raise MethodError(f"{self.name}: layer {block.layer} came before a layer that chooses")
        return chosen

    def kv_reads(self, tokens: int) -> int:
        """Of a layer that doesn't choose."""
        return min(tokens, self.budget)

    def stated_reads(self, tokens: int, *, prompt: int, layer: int) -> tuple[int, int]:
        """Everything in a layer that chooses."""
        read = tokens if layer in self.choosing else self.kv_reads(tokens)
        return read, read
