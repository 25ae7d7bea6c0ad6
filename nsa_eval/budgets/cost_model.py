"""What a request costs by Sparse Frontier's formulas: FLOPs of reading a prompt, elements read by a decode
step.

Both are of the paper (arXiv 2504.17768): FLOPs in its first version, at which it compares models (isoFLOPS),
elements read from memory in its later text (isoCost). They count arithmetic and traffic, on no machine:
seconds are measured apart.

Symbols, as there: L tokens, d hidden size, d_h head width, h query heads, n_kv KV heads, n layers, m width of
the MLP, |V| vocabulary, rho density: the share of the causal cells of the attention matrix that are computed.
The formula charges dense attention (rho = 1) the full L^2 and not its causal half, so a density stands for
the same share of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a decoder that its cost depends on."""

    hidden: int
    """d"""
    head: int
    """d_h"""
    heads: int
    """h"""
    kv_heads: int
    """n_kv"""
    layers: int
    """n"""
    mlp: int
    """m"""
    vocabulary: int
    """|V|"""

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Shape | None:
        """Read it from the fields of a model's config.

        Args:
            fields: By transformers' names, numbers or texts of numbers.

        Returns:
            None where one of them isn't there under a known name, or layers differ (mixtures of experts,
            whose active width the formula doesn't know).
        """

        def number(*names: str) -> int | None:
            for name in names:
                text = str(fields.get(name, "")).replace(",", "")
                if text.isdigit() and int(text) > 0:
                    return int(text)
            return None

        if any("expert" in name for name in fields):
            return None
        hidden, heads = number("hidden_size", "n_embd", "d_model"), number("num_attention_heads", "n_head")
        layers, vocabulary = number("num_hidden_layers", "n_layer"), number("vocab_size")
        mlp = number("intermediate_size", "n_inner")
        if hidden is None or heads is None or layers is None or vocabulary is None or mlp is None:
            return None
        return cls(
            hidden=hidden,
            head=number("head_dim") or hidden // heads,
            heads=heads,
            kv_heads=number("num_key_value_heads") or heads,
            layers=layers,
            mlp=mlp,
            vocabulary=vocabulary,
        )

    @property
    def weights(self) -> int:
        """Elements of the weights that a decode step reads, of a gated MLP and an output matrix.

        n (2 d h d_h + 2 d n_kv d_h + 3 d m) + d |V|; norms and biases are left out.
        """
        attention = 2 * self.hidden * self.head * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp) + self.hidden * self.vocabulary


def prefill_flops(shape: Shape, tokens: float, density: float, *, index: float = 0.0) -> float:
    """FLOPs of reading a prompt (the isoFLOPS axis).

    n [2 L d (2 d + 2 d_h n_kv) + rho h L^2 (4 d_h + 3)] of attention: projections, then for each cell two
    products of width d_h and 3 for the softmax; n (6 L d m + 2 L m) of a gated MLP; 2 L d of the embedding; 2
    L d |V| of the logits of all positions.

    Args:
        shape: Of the model.
        tokens: L.
        density: rho, within 0..1 (above 1 where a method reads more than there is, as NSA does on short
            texts). index: FLOPs of choosing besides, over all layers.
    """
    d, m, length = shape.hidden, shape.mlp, tokens
    projections = 2 * length * d * (2 * d + 2 * shape.head * shape.kv_heads)
    cells = density * shape.heads * length**2 * (4 * shape.head + 3)
    mlp = 6 * length * d * m + 2 * length * m
    ends = 2 * length * d + 2 * length * d * shape.vocabulary
    return shape.layers * (projections + cells + mlp) + ends + index


def decode_reads(shape: Shape, tokens: float, density: float, *, index: float = 0.0, rows: int = 1) -> float:
    """Elements that a decode step reads for each sequence (the isoCost axis).

    2 n L d_h n_kv rho of keys and values, index reads besides, and the weights, which the rows of a batch
    share.

    Args:
        shape: Of the model.
        tokens: L, in the cache.
        density: rho of the step.
        index: Elements read to choose, over all layers.
        rows: Sequences of the batch.
    """
    cache = 2 * shape.layers * tokens * shape.head * shape.kv_heads * density
    return cache + index + shape.weights / rows


def index_elements(shape: Shape, vectors: float) -> float:
    """Elements of so many vectors of a key's width, in every layer and KV head.

    What a method declares as its index reads (`Method.index_reads`), on average over the layers. Of Quest it
    is the paper's 2 d_h n_kv L / p a layer: two extremes of each page of p tokens.
    """
    return shape.layers * shape.kv_heads * shape.head * vectors


def index_flops(shape: Shape, vectors: float) -> float:
    """FLOPs of a product of a query with so many vectors, in every layer and query head: 2 d_h each.

    What a method declares as its index reads, whichever it is. The paper's own formula for vertical-slash has
    softmax, sums and sorts besides, 5 L q + 2 L log2 L + L (k_v + k_s) / 64 a head: some 2 percent more at
    d_h 128, q 64 and 128k tokens.
    """
    return 2 * shape.layers * shape.heads * shape.head * vectors


LEVELS = (1.0, 1 / 1.5, 1 / 2, 1 / 2.5, 0.3, 1 / 5, 1 / 7.5, 1 / 10, 1 / 15, 1 / 20)
"""Densities at which Sparse Frontier compares: budgets of 1/1.5 to 1/20 of the tokens (sparsity 0, .33, .5,
.6, .7, .8, .87, .9, .93, .95)."""
