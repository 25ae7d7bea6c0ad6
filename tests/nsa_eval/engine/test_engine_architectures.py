"""Every architecture gives the scores and replies of one plain forward a row, whatever is batched or shared.

To add one: a line in ARCHITECTURES, with the family that it should be found in.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM

from nsa_eval.engine import Engine
from nsa_models import trained_sparsity

BORDER = 64  # of the frequencies, for those that have one

_SHAPE = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # far from uniform predictions, so that mistakes show
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_MOE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": BORDER,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 6.0, 9.0, 14.0],
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
# Before, its generate() drops the cache at the border and feeds the last token alone.
_PHI3_RIGHT = Version(transformers.__version__) >= Version("5.23")
_DSA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "index_head_dim": 8,
    # Few heads give many keys an index of exactly 0, and which of those are chosen depends on shapes.
    "index_n_heads": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
_NSA = {
    "head_dim": 8,
    "nsa_block": 8,
    "nsa_stride": 4,
    "nsa_select_block": 8,
    "nsa_select_count": 4,
    "nsa_window": 16,
}


@dataclass(frozen=True)
class Architecture:
    """A config, and what is to be found out about it."""

    type: str
    family: str
    config: dict[str, Any] = field(default_factory=dict)
    generate: bool = True
    """Whether transformers' own greedy generate() is one more witness."""
    drawn: str = ""
    """End of the names of parameters that begin at 0, where they do nothing, and are drawn at random."""


_FULL, _EQUAL, _RECURRENT, _OWN, _UNCACHED = (
    "full attention",
    "equal rows",
    "recurrent",
    "own cache",
    "uncached",
)
ARCHITECTURES = {
    "llama": Architecture("llama", _FULL),
    "mixture": Architecture("mixtral", _FULL, _MOE),
    "latent": Architecture(
        "deepseek_v3",
        _FULL,
        {
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 2,
        },
    ),
    "learned positions": Architecture("opt", _FULL, {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "one key head": Architecture("gpt_bigcode", _FULL, {"n_positions": 512}),
    "longrope llama": Architecture("llama", _FULL, {"rope_parameters": _LONG}, generate=False),
    "longrope phi3": Architecture(
        "phi3", _FULL, {"rope_parameters": _LONG, "original_max_position_embeddings": BORDER}, _PHI3_RIGHT
    ),
    "dynamic llama": Architecture(
        "llama", _FULL, {"rope_parameters": _DYNAMIC, "max_position_embeddings": BORDER}, generate=False
    ),
    "local columns": Architecture(
        "gpt_neo",
        _EQUAL,
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    ),
    "alibi": Architecture("mpt", _EQUAL, {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2}),
    "sliding": Architecture("mistral", _EQUAL, {"sliding_window": 24}),
    "chunked": Architecture(
        "llama4_text",
        _EQUAL,
        {
            **_MOE,
            "attention_chunk_size": 16,
            "intermediate_size_mlp": 64,
            "head_dim": 8,
            "no_rope_layers": [1, 0],
        },
    ),
    "two kinds of rope": Architecture("gemma3_text", _EQUAL, {"head_dim": 8, "sliding_window": 16}),
    "heads by layer": Architecture(
        "gemma4_text",
        _EQUAL,
        {
            "head_dim": 8,
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 16,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 384,
            "num_kv_shared_layers": 0,
        },
    ),
    "convolutions": Architecture("lfm2", _EQUAL, {"layer_types": ["conv", "full_attention"]}),
    "mamba": Architecture("mamba", _RECURRENT, {"state_size": 8, "time_step_rank": 4}),
    "counts from 0": Architecture("bamba", _EQUAL, {**_MAMBA, "attn_layer_indices": [1]}),
    "use_cache by keyword": Architecture(
        "granitemoehybrid", _EQUAL, {**_MAMBA, **_MOE, "layer_types": ["mamba", "attention"]}
    ),
    "delta rule": Architecture(
        "qwen3_next",
        _EQUAL,
        {
            **_MOE,
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "own cache class": Architecture(
        "minimax", _OWN, {**_MOE, "layer_types": ["linear_attention", "full_attention"], "block_size": 16}
    ),
    "state in modules": Architecture(
        "recurrent_gemma",
        _UNCACHED,
        {
            "lru_width": 32,
            "head_dim": 8,
            "block_types": ["recurrent", "attention"],
            "attention_window_size": 16,
        },
        generate=False,
    ),
    "window that no mask knows": Architecture(
        "moshi",
        _UNCACHED,
        {"ffn_dim": 64, "head_dim": 8, "audio_vocab_size": 384, "sliding_window": 48},
        generate=False,
    ),
    "chosen keys": Architecture("deepseek_v32", _EQUAL, {**_DSA, "index_topk": 40}),
    "chosen keys, shared between layers": Architecture(
        "glm_moe_dsa",
        _EQUAL,
        {**_DSA, "num_hidden_layers": 3, "index_topk": 24, "indexer_types": ["full", "shared", "full"]},
    ),
    "chosen keys, by their values": Architecture("doge", _EQUAL, {"keep_window_size": 24}, drawn=".A"),
    "positions from the padding id": Architecture(
        "roberta", _UNCACHED, {"is_decoder": True, "max_position_embeddings": 514}, generate=False
    ),
    "logits that depend on a row's width": Architecture(
        "prophetnet",
        _UNCACHED,
        {
            "num_hidden_layers": None,  # refused by its config
            "max_position_embeddings": 514,
            "num_decoder_layers": 2,
            "num_decoder_attention_heads": 4,
            "decoder_ffn_dim": 64,
            "init_std": 0.3,
        },
        generate=False,
    ),
    "no cache argument": Architecture("rwkv", _UNCACHED, {"attention_hidden_size": 32}, generate=False),
    "nsa, longrope": Architecture(
        "nsa_decoder", "ours", {**_NSA, "attention": "nsa", "rope_parameters": _LONG}, generate=False
    ),
    "full, dynamic": Architecture(
        "nsa_decoder",
        "ours",
        {**_NSA, "attention": "full", "rope_parameters": _DYNAMIC, "max_position_embeddings": BORDER},
        generate=False,
    ),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "one row": {"batch_size": 1},
    "eight rows": {"batch_size": 8},
    "auto, pieces of 9, nothing shared": {"prefill_chunk": 9, "share_prefixes": False},
}
NEW_TOKENS = 7


def text_of(toys, tokenizer, seed, tokens):
    """A text of exactly so many tokens."""
    words = toys.make_text(seed, 2 * tokens).split()
    text = words[0]
    for word in words[1:]:
        longer = f"{text} {word}"
        if len(tokenizer.encode(longer)) <= tokens:
            text = longer
    while len(tokenizer.encode(text)) < tokens:
        text += "!"
    assert len(tokenizer.encode(text)) == tokens
    return text


def plain_logits(model, ids):
    """Logits [N, V] of one forward over one row, with nothing left of earlier ones."""
    for module in model.modules():  # what dynamic frequencies remember
        if hasattr(module, "original_inv_freq") and "dynamic" in str(getattr(module, "rope_type", "")):
            module.register_buffer("inv_freq", module.original_inv_freq.clone(), persistent=False)
            module.max_seq_len_cached = module.original_max_seq_len
    return model(input_ids=torch.tensor([ids])).logits[0].float()


def plain_score(model, context, continuation):
    logits = plain_logits(model, (context + continuation)[:-1])[-len(continuation) :]
    found = torch.log_softmax(logits, -1)
    tokens = torch.tensor(continuation)
    return float(found[torch.arange(len(tokens)), tokens].sum()), bool((found.argmax(-1) == tokens).all())


def plain_reply(model, ids, end):
    new: list[int] = []
    while len(new) < NEW_TOKENS and (not new or new[-1] != end):
        new.append(int(plain_logits(model, ids + new)[-1].argmax()))
    return new


@dataclass
class Case:
    """A model, requests, and what plain forwards say of them."""

    model: Any
    architecture: Architecture
    scores: list[Any]
    expected_scores: list[tuple[float, bool]]
    replies: list[Any]
    expected_replies: list[str]
    prompts: list[list[int]]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tokenizer, toys):
    architecture = ARCHITECTURES[request.param]
    fields = {name: value for name, value in {**_SHAPE, **architecture.config}.items() if value is not None}
    config = AutoConfig.for_model(architecture.type, **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if architecture.drawn and name.endswith(architecture.drawn):
            torch.nn.init.normal_(weight)
    model.generation_config.eos_token_id = 1
    head = text_of(toys, tokenizer, 50, 68)
    asked = [
        (text_of(toys, tokenizer, length, length), " " + toys.make_text(length + choice, 1 + 4 * choice))
        for length in (24, 56)
        for choice in range(2)
    ]
    asked += [(f"{head} {toys.make_text(9 + choice, 4)}", " gold under old") for choice in range(3)]
    asked += [
        (text_of(toys, tokenizer, 80, BORDER), " keys"),
        (text_of(toys, tokenizer, 81, BORDER + 1), " of"),
    ]
    scores = [toys.request_of("loglikelihood", pair, doc_id=number) for number, pair in enumerate(asked)]
    prompts = [text_of(toys, tokenizer, 60 + length, length) for length in (5, 60, 64, 80)]
    prompts += [f"{head} {toys.make_text(70 + number, 3 + number)}" for number in range(2)]
    given = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    replies = [
        toys.request_of("generate_until", (text, dict(given)), doc_id=i) for i, text in enumerate(prompts)
    ]
    encode = Engine(model, tokenizer, max_length=512).prompts.pair
    with torch.inference_mode():
        expected_scores = []
        for number, pair in enumerate(asked):
            ids = encode(*pair, origin=None)
            expected_scores.append(plain_score(model, ids.context, ids.continuation))
            assert np.isfinite(expected_scores[number][0])
        encoded = [tokenizer.encode(text) for text in prompts]
        expected = [
            tokenizer.decode(plain_reply(model, ids, tokenizer.eos_token_id), skip_special_tokens=True)
            for ids in encoded
        ]
    return Case(model, architecture, scores, expected_scores, replies, expected, encoded)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_and_replies_are_those_of_plain_forwards(case, tokenizer, variant):
    engine = Engine(case.model, tokenizer, max_length=512, **VARIANTS[variant])
    assert engine._answerer.loaded.reader().family.name == case.architecture.family
    for number, (found, expected) in enumerate(
        zip(engine.loglikelihood(case.scores), case.expected_scores, strict=True)
    ):
        assert found[0] == pytest.approx(expected[0], abs=2e-3), number
        assert found[1] == expected[1], number
    assert engine.generate_until(case.replies) == case.expected_replies
    kinds = {event.kind for event in engine.audit}
    assert (kinds == {"uncached"}) == (case.architecture.family == "uncached")
    assert (kinds == {"trained_sparse"}) == (trained_sparsity(case.model.config) is not None)


def test_replies_are_those_of_generate(case, tokenizer):
    if not case.architecture.generate:
        pytest.skip("its generate() keeps state between calls, or has none")
    for ids, expected in zip(case.prompts, case.expected_replies, strict=True):
        made = case.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        assert tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True) == expected
