"""Configuration of the NSA / full-attention decoder."""

# No `from __future__ import annotations` here: @strict checks types, and can't read them from strings.

from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from nsa_kernels import BlockGeometry

ATTENTIONS = ("nsa", "full")
COMPRESSIONS = ("mlp", "linear", "mean")
BRANCHES = ("cmp", "slc", "win")
"""NSA's branches in the order of their gates: compressed, selected, window."""


@strict
class NSADecoderConfig(PreTrainedConfig):
    """Shape of a decoder whose attention is Native Sparse Attention or full attention.

    A field of the wrong type is refused by name (huggingface_hub's StrictDataclassError).
    A twin pair shares every field but `attention`. The NSA fields are read only with `attention="nsa"`;
    their defaults are the paper's shape (arXiv 2502.11089, section 4.1).

    Attributes:
        attention: "nsa" (three gated branches) or "full" (causal softmax attention).
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the SwiGLU MLP.
        num_attention_heads: Query heads H.
        num_key_value_heads: K/V groups H_kv; divides H.
        head_dim: d_k, of queries and keys.
        v_head_dim: d_v, of values; None = head_dim.
        attention_gate: With `attention="full"`, multiply each head's output by a sigmoid gate (`g_proj`), as
            NSA does with each of its branches.
        gate_bias: The projection of gates has a bias.
        qk_norm: RMSNorm on each query and key head before RoPE.
        rope_parameters: transformers' RoPE dictionary, YaRN too: {"rope_type", "rope_theta", "factor", ...}.
            `partial_rotary_factor` in it (a field of that name is moved there, as in other configs) is the
            share of a head's dimensions that rotate, its first ones; default 1.
        nsa_block: l, tokens in a compression block.
        nsa_stride: d, tokens between the starts of two compression blocks; divides l and l'.
        nsa_select_block: l', tokens in a selection block.
        nsa_select_count: n, selection blocks that a token attends to, the forced ones among them.
        nsa_window: w, tokens of the sliding window.
        nsa_compression: phi, how a block of keys (or values) becomes one: "mlp" (paper), "linear" or "mean".
        nsa_compression_hidden: Width of phi's hidden layer with "mlp".
        nsa_share_kv: One K/V for the three branches (as some trainers do) instead of one each.
        nsa_compress_rotated: Compress keys after RoPE; the default compresses unrotated keys and rotates
            each compressed key by its block's first position.
        nsa_first_blocks: Selection blocks from the first on that every token selects (paper: 1).
        nsa_last_blocks: Selection blocks up to its own, which is one of them, that every token selects
            (paper: 2).
        nsa_branches: Branches whose outputs count, out of "cmp+slc+win"; the others' gates are closed. Blocks
            are chosen by the compressed keys whether their branch counts or not.
        nsa_backend: Backend of nsa_kernels: "auto", "torch", "triton" or "reference".
    """

    model_type = "nsa_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers reads a plain list
    # Read by this decoder whatever the rope_type; transformers would warn of a key it doesn't know.
    ignore_keys_at_rope_validation = {"partial_rotary_factor"}  # noqa: RUF012 - transformers' own type

    vocab_size: int = 32000
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: int = 2
    head_dim: int = 64
    v_head_dim: int | None = None
    max_position_embeddings: int = 65536
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    attention: str = "nsa"
    attention_bias: bool = False
    attention_gate: bool = False
    gate_bias: bool = True
    qk_norm: bool = True
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    nsa_block: int = 32
    nsa_stride: int = 16
    nsa_select_block: int = 64
    nsa_select_count: int = 16
    nsa_window: int = 512
    nsa_compression: str = "mlp"
    nsa_compression_hidden: int = 128
    nsa_share_kv: bool = False
    nsa_compress_rotated: bool = False
    nsa_first_blocks: int = 1
    nsa_last_blocks: int = 2
    nsa_branches: str = "+".join(BRANCHES)
    nsa_backend: str = "auto"

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - transformers' own
        """Fill derived fields and check the shape.

        Raises:
            ValueError: A field is out of its range; the message names field, value and what is allowed.
        """
        _refuse_misspelt(kwargs, [*(field.name for field in fields(self)), _PARTIAL])
        if self.v_head_dim is None:
            self.v_head_dim = self.head_dim
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}")
        if self.nsa_compression not in COMPRESSIONS:
            raise ValueError(
                f"nsa_compression must be one of {', '.join(COMPRESSIONS)}, got {self.nsa_compression!r}"
            )
        named = self.nsa_branches.split("+")
        if not set(named) <= set(BRANCHES) or len(set(named)) != len(named):
            raise ValueError(
                f"nsa_branches must be one or more of {', '.join(BRANCHES)}, each once, with + between, "
                f"got {self.nsa_branches!r}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for RoPE, got {self.head_dim}")
        _refuse_misspelt_rope(self.rope_parameters or {})
        if self.attention == "nsa":
            _ = self.geometry  # raises on an impossible block grid
        super().__post_init__(**kwargs)
        factor = (self.rope_parameters or {}).get(_PARTIAL, 1.0)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0.0 < factor <= 1.0:
            raise ValueError(f"{_PARTIAL} must be a number above 0 and at most 1, got {factor!r}")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(
                f"{_PARTIAL} ({factor}) of head_dim ({self.head_dim}) rotates {self.rotary_dim} dimensions; "
                "RoPE turns pairs, so this must be an even number of at least 2"
            )

    @property
    def rotary_dim(self) -> int:
        """r, the dimensions of a query or key head that rotate: int(head_dim * partial_rotary_factor)."""
        return int(self.head_dim * float((self.rope_parameters or {}).get(_PARTIAL, 1.0)))

    @property
    def geometry(self) -> BlockGeometry:
        """The block grid l, d, l', n, w as the kernels take it."""
        return BlockGeometry(
            block=self.nsa_block,
            stride=self.nsa_stride,
            select_block=self.nsa_select_block,
            select_count=self.nsa_select_count,
            window=self.nsa_window,
            first_blocks=self.nsa_first_blocks,
            last_blocks=self.nsa_last_blocks,
        )

    @property
    def closed_branches(self) -> tuple[int, ...]:
        """Numbers, in `BRANCHES`, of the branches whose output doesn't count."""
        named = self.nsa_branches.split("+")
        return tuple(index for index, branch in enumerate(BRANCHES) if branch not in named)


_PARTIAL = "partial_rotary_factor"

_MISSPELT = 0.85
"""Likeness (difflib's ratio) of a name to one of ours from which on it is a slip: two letters of fifteen."""


def _refuse_misspelt(names: Iterable[str], known: list[str]) -> None:
    """Refuse a field that is one of ours but for a slip: transformers keeps any name, and nobody reads it."""
    for name in names:
        if name == _PARTIAL:  # transformers moves it into rope_parameters
            continue
        near = get_close_matches(name, known, n=1, cutoff=0.6 if name.startswith("nsa_") else _MISSPELT)
        if near or name.startswith("nsa_"):
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no field {name!r}{hint}")


def _refuse_misspelt_rope(parameters: dict[str, Any]) -> None:
    """Refuse a slip in the one key whose absence means another model: transformers only warns of it."""
    for name in parameters:
        if name != _PARTIAL and get_close_matches(name, [_PARTIAL], cutoff=_MISSPELT):
            raise ValueError(f"there is no {name!r} in rope_parameters; did you mean {_PARTIAL!r}?")
