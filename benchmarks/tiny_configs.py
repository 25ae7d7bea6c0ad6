"""Tiny configs of transformers' architectures, made from their defaults by the names of their fields.

`tiny_config("llama")` is a config of a few thousand parameters: every kind of layer that the default has,
windows and chunks of a few tokens, ids of special tokens within a small vocabulary. What the rules can't know
stands in OVERRIDES, by model type.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

VOCABULARY = 256
SPECIAL = 16
"""Ids below are special tokens: a prompt holds none of them, as they may stand for an image."""
POSITIONS = 512
HEADS, HEAD_DIM = 4, 8
HIDDEN = HEADS * HEAD_DIM
LAYERS = 2

# The first pattern that matches a field's whole name gives its size. Only integers are replaced.
_SIZES: tuple[tuple[str, int], ...] = (
    # ReLU over a few heads leaves scores of exactly 0, and which of equal ones are chosen depends on shapes.
    (r"(index_n_heads|indexer_n_heads)", 16),
    (r"(vocab_size|vocab_size_per_layer_input|.*_vocab_size|vocab_size_.*)", VOCABULARY),
    (r"(max_position_embeddings|n_positions|n_ctx|seq_length|max_seq_len|max_sequence_length|max_source_positions"
     r"|max_target_positions|context_length|max_length|block_size_max)", POSITIONS),
    (r".*(num_key_value_heads|num_kv_heads|n_kv_heads|swa_num_key_value_heads)", HEADS // 2),
    (r".*(num_attention_heads|n_heads?|num_heads|attention_heads|swa_num_attention_heads)", HEADS),
    (r".*(moe_intermediate_size|expert_dim|shared_expert_intermediate_size|moe_.*_intermediate_size)", 32),
    (r".*(intermediate_size(_mlp)?|ffn_dim|n_inner|ffn_hidden_size|d_ff|inner_dim|dim_ff|mlp_dim)", 64),
    (r"(hidden_size_per_layer_input|embedding_size|word_embed_proj_dim)", HIDDEN),
    (r"(hidden_size|hidden_dim|d_model|n_embd|dim|embed_dim|emb_dim|model_dim|attention_hidden_size|lru_width"
     r"|.*_hidden_size|hidden_size_global|input_embedding_size|projection_dim|output_dim)", HIDDEN),
    (r"(linear_key_head_dim|linear_value_head_dim|mamba_headdim|mamba_d_head|mamba_head_dim)", HEAD_DIM),
    (r"(linear_num_key_heads)", 2),
    (r"(linear_num_value_heads)", 4),
    (r"(global_head_dim)", 2 * HEAD_DIM),
    (r"(.*head_dim|head_size|d_kv|kv_channels|dim_head|v_head_dim|rotary_dim)", HEAD_DIM),
    (r".*(num_shared_experts|n_shared_experts|moe_num_shared_experts)", 1),
    (r".*(num_experts_per_tok(en)?|experts_per_token|moe_top_?k|moe_k|top_?k_experts|router_top_?k)", 2),
    (r".*(num_local_experts|num_experts|n_routed_experts|moe_num_experts)", 4),
    (r"(n_group|topk_group|num_expert_group)", 1),
    (r"(first_k_dense_replace|num_dense_layers|first_dense_layers|num_dense_first_layers)", 1),
    (r".*lora_rank", 16),
    (r"(sliding_window|sliding_window_size|attention_window_size|attention_window|local_window_size|window_size"
     r"|attention_chunk_size|local_attention|.*sliding_window|.*attn_chunk_length)", 16),
    (r"(mamba_d_state|state_size|ssm_state_size|mamba_state_dim|mamba_d_conv_state)", 8),
    (r"(mamba_n_heads|mamba_num_heads|n_mamba_heads)", 8),
    (r"(mamba_d_ssm)", 64),
    (r"(mamba_n_groups|mamba_ngroups|n_groups)", 1),
    (r"(chunk_size|mamba_chunk_size|chunk_length)", 16),
    (r"(time_step_rank|mamba_dt_rank)", 4),
    (r"(index_topk|indexer_budget|keep_window_size)", 16),
    (r"(image_size)", 16),
    (r"(patch_size)", 8),
)  # fmt: skip
_LAYERS = re.compile(
    r"(num_(hidden_|decoder_|encoder_)?layers|n_layers?|encoder_layers|decoder_layers|num_blocks|depth)$"
)
_MOST_KINDS = 6
_TOKEN = re.compile(r".*(token_id|token_index|_token_idx)$")
_WINDOW = re.compile(
    r".*(sliding_window|window_size|attention_window|local_attention|attention_chunk_size|index_topk|indexer_budget)$"
)
_NAMED = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 2}

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
_HYBRID = ["linear_attention", "full_attention"]
_CONV = ["conv", "full_attention"]
_INDEXER = {
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 1,
    "hc_lowrank": 16,
}
_ENCODERS = (
    "bert",
    "bert-generation",
    "big_bird",
    "electra",
    "ernie",
    "megatron-bert",
    "rembert",
    "roc_bert",
    "roformer",
)
_ROBERTAS = (
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
)
_SLIDING = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_kv_lora_rank": 16,
    "swa_q_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "dots3_note_text": _SLIDING,
    "bamba": {**_MAMBA, "attn_layer_indices": [1], "num_key_value_heads": 2},
    "bart": {"is_decoder": True},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 16,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}, "ffn_config": {"ffn_hidden_size": 64}},
    "dots3_note": {
        "text_config": _SLIDING,
        "vision_config": {"adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN},
        "audio_config": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    },
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "laurel_rank": 8,
        "hidden_size_per_layer_input": 8,
    },
    "granitemoehybrid": {
        **_MAMBA,
        "shared_intermediate_size": 32,
        "layer_types": ["mamba", "attention"],
        "num_key_value_heads": 2,
    },
    "hunyuan_v1_dense": {"head_dim": HEAD_DIM},
    "hunyuan_v1_moe": {"head_dim": HEAD_DIM, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "num_hidden_layers": 2,
        "layer_types": _HYBRID,
        "mlp_layer_types": ["dense", "sparse"],
    },
    "lfm2": {"layer_types": _CONV},
    "lfm2_moe": {"layer_types": _CONV},
    "lfm3": {
        "layer_types": ["conv", "sliding_attention", "full_attention"],
        "num_hidden_layers": 3,
    },
    "llama4": {"text_config": {"moe_layers": [0, 1]}},
    "llama4_text": {"moe_layers": [0, 1]},
    "longcat_flash": {"num_layers": 2, "num_hidden_layers": 4, "qk_head_dim": 16, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": HEAD_DIM},
    "nemotron": {"head_dim": HEAD_DIM, "num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "head_dim": HEAD_DIM},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "hash_seed": 7,
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 16],
    },
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "chunk_size": 16, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX", "is_decoder": True},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "n_mamba_heads": 8,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
    # Those that are encoders unless they are told otherwise.
    **{name: {"is_decoder": True} for name in (*_ENCODERS, *_ROBERTAS)},
    "xlm": {"causal": True},
}
"""Fields by model type; a dict within goes into the config of that name."""

_DRAFTS = "drafts for another model, whose hidden states and keys it reads in place of token ids"
_CODES = "AutoModelForCausalLM hands its decoder the config of the whole; it predicts audio codes, not text"
NOT_ALONE = {
    "gemma3n": "its vision tower needs the package timm, which isn't installed here",
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "musicgen": _CODES,
    "musicgen_melody": _CODES,
}
"""Why some can't be built, in better words than their errors have."""

_FROM_PADDING = "its generate() hands on positions from 0, its forward counts them from pad_token_id + 1"
GENERATE = {
    **dict.fromkeys((*_ROBERTAS, "xmod"), _FROM_PADDING),
    "moshi": "its generate() makes a sliding cache, its forward masks by no window",
    "prophetnet": "its logits depend on how many tokens follow, so no cache can continue as its forward does",
    "xlm": "its generate() appends a mask token to the prompt and predicts that",
}
"""Why the generate() of some gives other replies than their own uncached forward."""


def tiny_config(model_type: str, *, window: int = 16) -> PretrainedConfig:
    """A small config of a model type.

    Args:
        model_type: As in transformers' CONFIG_MAPPING.
        window: Tokens of local windows, where it has such.

    Raises:
        Exception: Whatever the config's class says to what the rules made.
    """
    kind = CONFIG_MAPPING[model_type]
    more = OVERRIDES.get(model_type, {})
    fields = _fields(kind(), window)
    _merge(fields, more)
    return kind(**fields)


def has_window(config: PretrainedConfig) -> bool:
    """Whether a config, or one within, names a local window or chunk of attention."""
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            if has_window(value):
                return True
        elif _WINDOW.match(name) and type(value) is int:
            return True
    return False


def _fields(config: PretrainedConfig, window: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    default = vars(config)
    chosen, layers = _layers(config)
    special = 3
    for name, value in default.items():
        if isinstance(value, PretrainedConfig):
            fields[name] = _fields(value, window) | {"model_type": value.model_type}
        elif isinstance(value, list) and len(value) == layers and layers > 2:
            if len({repr(one) for one in value}) <= _MOST_KINDS:  # else numbers of layers: left to the class
                fields[name] = [value[index] for index in chosen]
        elif type(value) is int:
            size = _size(name)
            if _TOKEN.match(name):
                fields[name] = _NAMED.get(name, special)
                special = min(special + (name not in _NAMED), SPECIAL - 1)
            elif _LAYERS.match(name):
                fields[name] = len(chosen)
            elif size is not None:
                fields[name] = window if _WINDOW.match(name) else size
    kv, heads = "num_key_value_heads", "num_attention_heads"
    if kv in default and heads in default and default[kv] == default[heads]:
        fields[kv] = fields.get(heads, HEADS)
    for name in _NAMED:
        if name in default or name != "decoder_start_token_id":
            fields.setdefault(name, _NAMED[name])
    if "initializer_range" in default:
        fields["initializer_range"] = 0.3  # far from uniform predictions, so that mistakes show
    return fields


def _layers(config: PretrainedConfig) -> tuple[list[int], int]:
    """Indices of layers that between them are of every kind, and how many layers there are."""
    default = vars(config)
    counts = [value for name, value in default.items() if _LAYERS.match(name) and type(value) is int]
    layers = max(counts, default=0)
    lists = [
        value
        for value in default.values()
        if isinstance(value, list)
        and len(value) == layers
        and len({repr(one) for one in value}) <= _MOST_KINDS
    ]
    if not lists or layers <= 2:
        return list(range(LAYERS)), layers
    seen: dict[str, int] = {}
    for index in range(layers):
        seen.setdefault(repr([values[index] for values in lists]), index)
    chosen = list(seen.values())
    return (chosen if len(chosen) >= LAYERS else [0, layers - 1]), layers


def _size(name: str) -> int | None:
    return next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
