"""flash-linear-attention's NSA models, `model_type: nsa`.

As its layer computes (fla/layers/nsa.py, fla/ops/nsa): one K/V for the three branches, RoPE in halves over
the whole head, compressed keys and values = means over blocks of the rotated keys and of the values
(l = d = l'), a block visible once it is complete, gates by a sigmoid without a bias in the order compressed,
selected, window, which counts the token itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from nsa_models.imports._format import (
    FORCED_BLOCKS,
    Choices,
    Fields,
    Format,
    Meaning,
    fewer_blocks,
    mean_pooled_blocks,
    next_power_of_2,
    special_tokens,
)

_MLP_STEP = 256
"""MLP widths that aren't given are rounded up to a multiple of this."""
_PAPER = (
    "config.json doesn't tell which blocks were forced in training: read as fla since August 2025, block 0 "
    "and the last two; a checkpoint from before forced the token's own block alone (nsa-eval convert "
    "--forced-blocks own)"
)
_OWN = (
    "config.json doesn't tell which blocks were forced in training: fla since August 2025 refuses such a "
    "block_size, so the token's own block alone is, as before (else: nsa-eval convert --forced-blocks paper)"
)


def _read(given: Fields, shapes: Mapping[str, tuple[int, ...]], choices: Choices) -> Meaning:
    if choices.reading not in (None, "nsa"):
        raise given.refuse(
            f"reading {choices.reading!r} is for llama-nsa; models of fla use all branches (nsa)"
        )
    heads = given.whole("num_heads", 64)
    groups = heads if given.get("num_kv_heads", 4) is None else given.whole("num_kv_heads", 4)
    width, notes = _head_dim(given, shapes, heads)
    hidden = given.whole("hidden_size", 2048)
    block = given.whole("block_size", 64)
    named = given.whole("block_counts", 16)
    count = next_power_of_2(named)
    window = given.whole("window_size", 512, least=0)
    given.only("hidden_act", "swish", "silu", why="only swish (silu) is the SwiGLU of this decoder")
    given.only("attnres_block_size", None, why="this decoder has no attention residuals")
    given.ignore("fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy")
    given.ignore("use_l2warp", "elementwise_affine")
    if count != named:
        notes.append(
            f"block_counts {named}: fla's kernels select the next power of 2, so nsa_select_count is {count}"
        )
    early = block < 2 * count  # refused by the kernels that force three blocks
    if choices.forced_blocks is None:
        notes.append(_OWN if early else _PAPER)
    rule = choices.forced_blocks or ("own" if early else "paper")
    if early:
        notes.append(fewer_blocks(block, named, count))
    forced = FORCED_BLOCKS[rule]
    return Meaning(
        fields={
            "vocab_size": given.whole("vocab_size", 32000),
            "hidden_size": hidden,
            "intermediate_size": _mlp_width(given, hidden),
            "num_hidden_layers": given.whole("num_hidden_layers", 24),
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": width,
            "max_position_embeddings": given.whole("max_position_embeddings", 2048),
            "rms_norm_eps": given.get("norm_eps", 1e-6),
            "initializer_range": given.get("initializer_range", 0.02),
            "attention": "nsa",
            "attention_bias": given.get("qkv_bias", False),
            "gate_bias": False,
            "qk_norm": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": given.get("rope_theta", 10000.0)},
            "tie_word_embeddings": given.get("tie_word_embeddings", False),
            **special_tokens(given),
            **mean_pooled_blocks(block=block, count=count, window=window, forced=forced),
            "nsa_branches": "cmp+slc+win" if window else "cmp+slc",
        },
        notes=tuple(notes),
    )


def _head_dim(given: Fields, shapes: Mapping[str, tuple[int, ...]], heads: int) -> tuple[int, list[str]]:
    """The width that the weights have: before December 2025 layers were 64 wide whatever head_dim said."""
    said = given.whole("head_dim", 32)
    shape = shapes.get("model.layers.0.attn.q_proj.weight")
    if shape is None or shape[0] == heads * said:
        return said, []
    if shape[0] % heads:
        raise given.refuse(
            f"model.layers.0.attn.q_proj.weight has {shape[0]} rows, no multiple of num_heads {heads}"
        )
    width = shape[0] // heads
    return width, [
        f"config.json says head_dim {said}, but the weights are of heads {width} wide, which is used"
    ]


def _mlp_width(given: Fields, hidden: int) -> int:
    ratio = given.get("hidden_ratio", 4) or 4
    if given.get("intermediate_size") is not None:
        return given.whole("intermediate_size")
    return -(-int(hidden * ratio * 2 / 3) // _MLP_STEP) * _MLP_STEP


FORMAT = Format(
    model_type="nsa",
    outside={
        "model.embeddings.weight": "model.embed_tokens.weight",
        "model.norm.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    },
    layer={
        "attn_norm.weight": "input_layernorm.weight",
        "mlp_norm.weight": "post_attention_layernorm.weight",
        **{f"attn.{name}_proj.weight": f"self_attn.{name}_proj.weight" for name in "qkvgo"},
        **{f"attn.{name}_proj.bias": f"self_attn.{name}_proj.bias" for name in "qkv"},
        **{f"mlp.{name}_proj.weight": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
    },
    ignored=(".rotary.inv_freq",),
    read=_read,
)
