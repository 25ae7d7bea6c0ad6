"""Bytes of keys and values by a model's config are those that its cache really holds."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM
from nsa_models.kv import kv_cost, token_width

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
NSA = {"nsa_block": 8, "nsa_stride": 4, "nsa_select_block": 8, "nsa_select_count": 4, "nsa_window": 16}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3, wide heads": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=24)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=16)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SHAPE)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)),
    "falcon, one group": lambda: FalconForCausalLM(
        FalconConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=True
        )
    ),
    "latent": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SHAPE | {"num_key_value_heads": 4},
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=12,
        )
    ),
    "ours, full": lambda: NSADecoderForCausalLM(NSADecoderConfig(**SHAPE, attention="full", **NSA)),
}


def held(cache):
    """Bytes of all keys and values of a cache of transformers'."""
    return sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_kept_bytes_are_those_of_the_cache(name, dtype):
    model = MODELS[name]().to(dtype).eval()
    tokens = 40
    with torch.inference_mode():
        cache = model(torch.arange(tokens)[None] % 50, use_cache=True).past_key_values
    cost = kv_cost(model, tokens)
    real = (
        held(cache)
        if name != "ours, full"
        else sum(
            x[:, :, :].numel() * x.element_size() for layer in cache.layers for x in real_of(layer, tokens)
        )
    )
    assert cost.kept_bytes == real
    assert cost.read_bytes == real, "full attention reads all of it"


def real_of(layer, tokens):
    """A layer's buffers without the room behind the tokens."""
    return [
        x.narrow(1, 0, tokens) if x.shape[1] >= tokens else x.narrow(2, 0, tokens)
        for x in layer.buffers.values()
    ]


@pytest.mark.parametrize("share", [False, True])
def test_nsa_has_three_branches_and_compressed_keys(share):
    config = NSADecoderConfig(**SHAPE, attention="nsa", nsa_share_kv=share, **NSA)
    model = NSADecoderForCausalLM(config).eval()
    tokens, a_token = 100, 2 * 2 * config.head_dim * 4  # keys and values of 2 groups, in float32
    cost = kv_cost(model, tokens)
    blocks = (100 - 8) // 4 + 1
    assert cost.read_bytes == 2 * a_token * (blocks + 4 * 8 + 16)
    assert cost.kept_bytes == 2 * a_token * ((1.5 if share else 3) * tokens + blocks), "1.5: keys before RoPE"
    with torch.inference_mode():
        cache = model(torch.arange(tokens)[None] % 50, use_cache=True).past_key_values
    real = sum(
        x.element_size() * x[:, : blocks if key.endswith("_cmp") else tokens].numel()
        for layer in cache.layers
        for key, x in layer.buffers.items()
    )
    assert real == cost.kept_bytes, {key: tuple(x.shape) for key, x in cache.layers[0].buffers.items()}


def test_a_config_that_tells_nothing_gives_none():
    from transformers import PreTrainedConfig

    assert token_width(PreTrainedConfig()) is None
