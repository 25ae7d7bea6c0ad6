"""Llama-named NSA models, `model_type: llama-nsa`: SSA (arXiv 2511.20102), its NSA, MoBA and full baselines.

Llama's names and `self_attn.g_proj` with three gates a head. Blocks as fla's first NSA kernels had them:
compressed keys = means over blocks of the rotated keys (l = d = l'), the token's own block forced alone. What
reads the weights differs between the four models of that family and isn't named in all of their configs:
three branches (NSA), the selected branch under its gate (SSA in its sparse mode, MoBA), or full attention
under the same gate (SSA in its full mode, and the full baseline).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from nsa_models.imports._format import (
    FORCED_BLOCKS,
    Choices,
    Fields,
    Format,
    Meaning,
    fewer_blocks,
    mean_pooled_blocks,
    next_power_of_2,
    rope_parameters,
    special_tokens,
)

_MODES = {"sparse": "selected", "full": "full"}
"""Their `inference_mode`, as readings."""
_BRANCHES = {"nsa": "cmp+slc+win", "selected": "slc", "full": "cmp+slc+win"}
_SELECTED = 1
"""The selected branch's place among a head's gates."""


def _read(given: Fields, shapes: Mapping[str, tuple[int, ...]], choices: Choices) -> Meaning:
    heads = given.whole("num_attention_heads", 32)
    groups = heads if given.get("num_key_value_heads") is None else given.whole("num_key_value_heads")
    hidden = given.whole("hidden_size", 4096)
    width = hidden // heads if given.get("head_dim") is None else given.whole("head_dim")
    block = given.whole("block_size", 64)
    named = given.whole("block_counts", 16)
    count = next_power_of_2(named)
    window = given.whole("window_size", 512, least=0)
    reading, notes = _reading(given, choices, window)
    given.only("hidden_act", "silu", why="only silu is the SwiGLU of this decoder")
    given.only("mlp_bias", False, why="this decoder's MLP has no biases")
    given.only("attention_bias", False, why="this decoder's o_proj has no bias")
    given.only("pretraining_tp", 1, None, why="weights cut for tensor parallelism aren't read")
    given.ignore("attention_dropout")
    if count != named:
        notes.append(
            f"block_counts {named}: their kernels select the next power of 2, so nsa_select_count is {count}"
        )
    if block < 2 * count and reading != "full":
        notes.append(fewer_blocks(block, named, count))
    forced = FORCED_BLOCKS[choices.forced_blocks or "own"]
    changes: dict[str, Callable[[Tensor], Tensor]] = {}
    if reading == "full":
        changes["self_attn.g_proj.weight"] = _selected_gates
    branches = _BRANCHES[reading]
    if reading == "nsa" and not window:
        branches = "cmp+slc"
    return Meaning(
        fields={
            "vocab_size": given.whole("vocab_size", 32000),
            "hidden_size": hidden,
            "intermediate_size": given.whole("intermediate_size", 11008),
            "num_hidden_layers": given.whole("num_hidden_layers", 32),
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": width,
            "max_position_embeddings": given.whole("max_position_embeddings", 2048),
            "rms_norm_eps": given.get("rms_norm_eps", 1e-6),
            "initializer_range": given.get("initializer_range", 0.02),
            "attention": "full" if reading == "full" else "nsa",
            "attention_gate": reading == "full",
            "gate_bias": False,
            "qk_norm": False,
            "rope_parameters": rope_parameters(given),
            "tie_word_embeddings": given.get("tie_word_embeddings", False),
            **special_tokens(given),
            **mean_pooled_blocks(block=block, count=count, window=window, forced=forced),
            "nsa_branches": branches,
        },
        notes=tuple(notes),
        changes=changes,
    )


def _reading(given: Fields, choices: Choices, window: int) -> tuple[str, list[str]]:
    """What reads the weights, and what there is to note about that."""
    mode = given.get("inference_mode")
    if mode is not None and mode not in _MODES:
        raise given.refuse(f"config.json says inference_mode {mode!r}; expected {' or '.join(_MODES)}")
    if choices.reading is not None:
        return choices.reading, []
    if window and mode != "full":  # the code of the sparse mode takes none, so that this is NSA itself
        return "nsa", []
    if mode is not None:
        return _MODES[mode], []
    raise given.refuse(
        "window_size 0 without an inference_mode: config.json doesn't tell what reads these weights. Set "
        'inference_mode to "sparse" (the selected branch alone: SSA, MoBA) or "full" (full attention with '
        "the same gate) in it, or convert with --reading selected, full, or nsa"
    )


def _selected_gates(weight: Tensor) -> Tensor:
    """Of g_proj [3 H, hidden], three gates a head, the selected branch's alone [H, hidden]."""
    gates: Tensor = weight.unflatten(0, (-1, 3))[:, _SELECTED]
    return gates


_NAMES = (
    *(f"self_attn.{name}_proj.weight" for name in "qkvgo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
_OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")

FORMAT = Format(
    model_type="llama-nsa",
    outside={name: name for name in _OUTSIDE},
    layer={name: name for name in _NAMES},
    ignored=(".rotary_emb.inv_freq",),
    read=_read,
)
