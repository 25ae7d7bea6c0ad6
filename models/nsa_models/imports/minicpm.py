"""MiniCPM's decoders, `model_type: minicpm`: MiniCPM4, 4.1 and InfLLM-V2's base models.

A Llama with three factors between its parts, which have a place in its weights: embeddings times `scale_emb`,
what attention and MLP add to the residual times `scale_depth` / sqrt(layers), and the head over hidden_size /
`dim_model_base`. So it is this decoder with full attention and scaled weights, in float32 where they were
scaled: factors aren't powers of 2. Tied embeddings are written out as two.

`sparse_config` has no weights of its own: InfLLM-V2 is a method on this model (nsa_models/methods), which
reads nothing sparse unless a run names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nsa_models.imports._format import Choices, Fields, Format, Meaning, rope_parameters, special_tokens

_SPARSE = {
    "kernel_size": 32,
    "kernel_stride": 16,
    "init_blocks": 1,
    "block_size": 64,
    "window_size": 2048,
    "topk": 64,
    "dense_len": 8192,
}
"""Keys of `sparse_config` and the defaults of the model's own code."""


def _read(given: Fields, shapes: Mapping[str, tuple[int, ...]], choices: Choices) -> Meaning:
    if choices.reading is not None or choices.forced_blocks is not None:
        raise given.refuse("reading and forced_blocks are for NSA checkpoints; this one is dense")
    heads = given.whole("num_attention_heads", 32)
    groups = heads if given.get("num_key_value_heads") is None else given.whole("num_key_value_heads")
    hidden = given.whole("hidden_size", 4096)
    width = hidden // heads if given.get("head_dim") is None else given.whole("head_dim")
    layers = given.whole("num_hidden_layers", 32)
    longest = given.whole("max_position_embeddings", 2048)
    tied = given.get("tie_word_embeddings", True)
    given.only("hidden_act", "silu", why="only silu is the SwiGLU of this decoder")
    given.only("attention_bias", False, why="this decoder's o_proj has no bias")
    given.only("pretraining_tp", 1, None, why="weights cut for tensor parallelism aren't read")
    given.ignore("attention_dropout", "mup_denominator")
    rope, notes = _rope(given, longest)
    notes += _sparse(given)
    base = _number(given, "dim_model_base", 1)
    added = _number(given, "scale_depth", 1) / math.sqrt(layers)
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "model.embed_tokens.weight": partial(_scaled, factor=_number(given, "scale_emb", 1)),
        "self_attn.o_proj.weight": partial(_scaled, factor=added),
        "mlp.down_proj.weight": partial(_scaled, factor=added),
        "lm_head.weight": partial(_scaled, factor=base / hidden),
    }
    return Meaning(
        fields={
            "vocab_size": given.whole("vocab_size", 32000),
            "hidden_size": hidden,
            "intermediate_size": given.whole("intermediate_size", 11008),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": width,
            "max_position_embeddings": longest,
            "rms_norm_eps": given.get("rms_norm_eps", 1e-6),
            "initializer_range": given.get("initializer_range", 0.1),
            "attention": "full",
            "qk_norm": False,
            "rope_parameters": rope,
            "tie_word_embeddings": False,
            **special_tokens(given),
        },
        notes=tuple(notes),
        changes=changes,
        untied=bool(tied),
    )


def _rope(given: Fields, longest: int) -> tuple[dict[str, Any], list[str]]:
    """RoPE, with longrope's factors as that code takes them."""
    rope = rope_parameters(given)
    original = rope.get("original_max_position_embeddings")
    if rope["rope_type"] != "longrope" or not isinstance(original, int) or longest <= original:
        return rope, []
    # Its tables are made once for max_position_embeddings, by the long factors where that is beyond.
    rope["short_factor"] = rope.get("long_factor")
    return rope, [
        f"max_position_embeddings {longest} is beyond original_max_position_embeddings {original}: RoPE's "
        "long factors are used for texts of any length, as the model's own code does"
    ]


def _sparse(given: Fields) -> list[str]:
    """What to say of `sparse_config`."""
    said = given.get("sparse_config")
    if said is None:
        return []
    if not isinstance(said, Mapping) or set(said) - {*_SPARSE, "use_nope"}:
        raise given.refuse(
            f"config.json says sparse_config {said!r}; expected a mapping of {', '.join(_SPARSE)}, use_nope"
        )
    if said.get("use_nope"):
        return [
            "sparse_config chooses blocks by keys before RoPE (use_nope), which the method infllm-v2 doesn't "
            "offer: only its dense model is read"
        ]
    sizes = {**_SPARSE, **said}
    options = ",".join(
        f"{name}={sizes[key]}"
        for name, key in (
            ("kernel", "kernel_size"),
            ("stride", "kernel_stride"),
            ("block", "block_size"),
            ("first_blocks", "init_blocks"),
            ("window", "window_size"),
            ("dense_length", "dense_len"),
        )
        if sizes[key] != _SPARSE[key]
    )
    local = sizes["window_size"] // sizes["block_size"]
    inclusive, beside = (blocks * sizes["block_size"] for blocks in (sizes["topk"], sizes["topk"] + local))
    return [
        "it is read dense unless a run names a method; its sparse_config is the method "
        f"infllm-v2:{inclusive}{',' if options else ''}{options} where topk counts all blocks, and "
        f"infllm-v2:{beside}{',' if options else ''}{options} where local blocks come on top"
    ]


def _number(given: Fields, name: str, default: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise given.refuse(f"config.json says {name} {value!r}; expected a number above 0")
    return float(value)


def _scaled(weight: Tensor, factor: float) -> Tensor:
    """In float32 at least, where bfloat16 would round the product; as it is where nothing changes."""
    wide = weight if weight.dtype == torch.float64 else weight.float()
    return weight if factor == 1 else wide * factor


_NAMES = (
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
_OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")

FORMAT = Format(
    model_type="minicpm",
    outside={name: name for name in _OUTSIDE},
    layer={name: name for name in _NAMES},
    ignored=(".rotary_emb.inv_freq",),
    read=_read,
)
