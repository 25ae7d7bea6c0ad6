"""Models of transformers that were trained to read few keys: how many, and where its code isn't the authors'.

They run through transformers' own classes, masked and dense underneath: their quality is theirs, their speed
isn't. What a query reads is told by their configs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedConfig

_DMA = (
    "transformers adds exp(A softplus(dt)) to the logits of DMA and chooses keys by it; the authors' "
    "flash-sparse-attention example adds A softplus(dt), which gives other logits for the same weights",
    "DMA's bias is made of a key's value alone: tokens of one id tie in the first layer, and of those the "
    "earlier ones are read (transformers leaves it to torch.topk, which answers by the number of columns)",
)
_DSA = (
    "transformers computes DSA's index in the model's own precision, without the Hadamard turn and the FP8 "
    "of DeepSeek's code: near its last key a selection may be another",
    "DSA's keys are chosen by torch.topk, and every key whose index is exactly 0 ties: which of those are "
    "read isn't defined",
)
_HALVES = (
    "transformers turns the indexer's queries and keys in halves; DeepSeek's demonstration of October 2025 "
    "turns them in pairs, as its latent attention",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedSparsity:
    """How a model chooses the keys that a query reads, as its config says."""

    method: str
    """What it is called."""
    field: str
    """The config's field that holds the budget."""
    budget: int
    """KV tokens that a query reads at most, per layer."""
    index_numbers: int = 0
    """Numbers that all indexers cache of a token besides, and a query reads of every earlier one."""
    notes: tuple[str, ...] = ()
    """What a reader of its scores should know, a sentence each."""

    @property
    def label(self) -> str:
        """In a table: "DSA, 2048 KV tokens a query (index_topk)"."""
        return f"{self.method}, {self.budget} KV tokens a query ({self.field})"


def trained_sparsity(config: PreTrainedConfig) -> TrainedSparsity | None:
    """What a model was trained to read, or None for one that this version doesn't know as sparse."""
    text = _text(config)
    known = _KNOWN.get(str(getattr(text, "model_type", "")))
    return None if known is None else known(text)


def chooses_keys(config: PreTrainedConfig) -> bool:
    """Whether a model's own code chooses keys with an indexer, as the fields of its config tell.

    Such code asks for the name of its attention: it puts the choice into the mask for `eager` and `sdpa`, and
    leaves it to any other, which reads everything if it doesn't know.
    """
    fields = _text(config).to_dict()
    return any(name.startswith(("index_", "indexer_")) for name in fields)


def _text(config: PreTrainedConfig) -> Any:  # noqa: ANN401 - a config of any class
    """The config of a model's decoder; of one that is ambiguous, the whole."""
    try:
        return config.get_text_config(decoder=True)
    except Exception:
        return config


def _doge(config: Any) -> TrainedSparsity:  # noqa: ANN401 - a config of any class
    """Dynamic Mask Attention (arXiv 2508.02124): per KV head the keys of largest bias, whatever the query."""
    return TrainedSparsity(
        method="DMA", field="keep_window_size", budget=int(config.keep_window_size), notes=_DMA
    )


def _dsa(*more: str) -> Callable[[Any], TrainedSparsity]:
    """DeepSeek Sparse Attention: all heads read the tokens of highest index."""

    def of(config: Any) -> TrainedSparsity:  # noqa: ANN401 - a config of any class
        kinds = getattr(config, "indexer_types", None) or ["full"] * int(config.num_hidden_layers)
        return TrainedSparsity(
            method="DSA",
            field="index_topk",
            budget=int(config.index_topk),
            index_numbers=int(config.index_head_dim) * sum(kind != "shared" for kind in kinds),
            notes=(*_DSA, *more),
        )

    return of


_KNOWN: Mapping[str, Callable[[Any], TrainedSparsity]] = MappingProxyType(
    {"doge": _doge, "deepseek_v32": _dsa(*_HALVES), "glm_moe_dsa": _dsa()}
)
"""By model_type. What each means was read in transformers 5.23."""
