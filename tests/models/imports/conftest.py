"""Small checkpoints in the formats of other trainers, and what those formats define, read plainly.

The plain reading is written from the definitions, token by token and head by head in float64, and shares no
line with the decoder.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY = 280

FLA: dict[str, Any] = {
    "model_type": "nsa",
    "architectures": ["NSAForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "qkv_bias": False,
    "block_size": 8,
    "block_counts": 4,
    "window_size": 6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "hidden_ratio": 4,
    "intermediate_size": 48,
    "hidden_act": "swish",
    "norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "fuse_norm": True,
    "fuse_swiglu": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "use_cache": True,
    "torch_dtype": "float32",
    "transformers_version": "4.53.0",
}
LLAMA: dict[str, Any] = {
    "model_type": "llama-nsa",
    "architectures": ["LlamaNSAForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "hidden_act": "silu",
    "pretraining_tp": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "tie_word_embeddings": True,
    "block_size": 8,
    "block_counts": 4,
    "window_size": 6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "auto_map": {"AutoModelForCausalLM": "modeling_llama_nsa.LlamaNSAForCausalLM"},
    "torch_dtype": "float32",
}

MINICPM: dict[str, Any] = {
    "model_type": "minicpm",
    "architectures": ["MiniCPMForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"},
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 24,
    "mup_denominator": 32,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": [1, 2],
    "torch_dtype": "float32",
}
SPARSE = {
    "kernel_size": 4,
    "kernel_stride": 2,
    "init_blocks": 1,
    "block_size": 4,
    "window_size": 8,
    "topk": 5,
    "use_nope": False,
    "dense_len": 20,
}


@dataclass(frozen=True)
class Case:
    """A checkpoint: its config, what stands in its weights, and what it means."""

    config: dict[str, Any]
    choices: dict[str, str] = field(default_factory=dict)
    head_dim: int = 8
    count: int = 4
    """Blocks that are selected."""
    forced: str = "paper"
    reading: str = "nsa"

    @property
    def fla(self) -> bool:
        return bool(self.config["model_type"] == "nsa")

    @property
    def minicpm(self) -> bool:
        return bool(self.config["model_type"] == "minicpm")


def _fla(**changes: Any) -> dict[str, Any]:
    return {**FLA, **changes}


def _llama(**changes: Any) -> dict[str, Any]:
    return {**LLAMA, **changes}


def _minicpm(**changes: Any) -> dict[str, Any]:
    return {**MINICPM, **changes}


LONG_ROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 4.0, 9.0],
    "original_max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 16,
}
CASES = {
    "fla": Case(_fla()),
    "fla-small-blocks": Case(_fla(block_size=4), forced="own"),
    "fla-small-blocks-paper": Case(_fla(block_size=4), {"forced_blocks": "paper"}),
    "fla-own-block": Case(_fla(), {"forced_blocks": "own"}, forced="own"),
    "fla-biases-tied": Case(_fla(qkv_bias=True, tie_word_embeddings=True)),
    "fla-no-window": Case(_fla(window_size=0)),
    "fla-group-of-32": Case(_fla(num_heads=32, num_kv_heads=1, head_dim=4), head_dim=4),
    "fla-no-grouping": Case(_fla(num_kv_heads=None)),
    "fla-head-dim-not-as-said": Case(_fla(head_dim=4), head_dim=8),
    "fla-odd-count": Case(_fla(block_counts=3)),
    "llama-nsa": Case(_llama(), forced="own"),
    "llama-nsa-paper": Case(_llama(), {"forced_blocks": "paper"}),
    "llama-nsa-no-window": Case(_llama(window_size=0), {"reading": "nsa"}, forced="own"),
    "ssa-sparse": Case(_llama(window_size=0, inference_mode="sparse"), forced="own", reading="selected"),
    "ssa-full": Case(_llama(window_size=0, inference_mode="full"), forced="own", reading="full"),
    "ssa-longer": Case(
        _llama(window_size=0, inference_mode="sparse", rope_scaling=LLAMA3_ROPE),
        forced="own",
        reading="selected",
    ),
    "moba": Case(_llama(window_size=0), {"reading": "selected"}, forced="own", reading="selected"),
    "minicpm": Case(_minicpm(), reading="full"),
    "minicpm-tied": Case(_minicpm(tie_word_embeddings=True), reading="full"),
    "minicpm-sparse": Case(_minicpm(sparse_config=SPARSE, rope_scaling=LONG_ROPE), reading="full"),
    "minicpm-longer": Case(_minicpm(rope_scaling=LONG_ROPE, max_position_embeddings=256), reading="full"),
}
AS_IT_IS = [name for name, case in CASES.items() if not case.choices]
"""Cases whose files tell everything: they load by their path."""


def random_weights(case: Case, seed: int = 0) -> dict[str, Tensor]:
    """Tensors under the format's names; logits of them differ from token to token."""
    generator = torch.Generator().manual_seed(seed)
    given = case.config
    hidden, mlp = given["hidden_size"], given["intermediate_size"]
    heads = given["num_heads" if case.fla else "num_attention_heads"]
    groups = given["num_kv_heads" if case.fla else "num_key_value_heads"] or heads

    def random(*shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def norm() -> Tensor:
        return 1 + random(hidden, scale=0.1)

    attention, first, second = (
        ("attn", "attn_norm", "mlp_norm")
        if case.fla
        else ("self_attn", "input_layernorm", "post_attention_layernorm")
    )
    weights = {
        f"model.{'embeddings' if case.fla else 'embed_tokens'}.weight": random(VOCABULARY, hidden, scale=1.0),
        "model.norm.weight": norm(),
    }
    if not given["tie_word_embeddings"]:
        weights["lm_head.weight"] = random(VOCABULARY, hidden)
    sizes = {
        "q": heads * case.head_dim,
        "k": groups * case.head_dim,
        "v": groups * case.head_dim,
        "g": heads * 3,
    }
    if case.minicpm:
        del sizes["g"]
    for layer in range(given["num_hidden_layers"]):
        here = f"model.layers.{layer}."
        for name, size in sizes.items():
            weights[f"{here}{attention}.{name}_proj.weight"] = random(size, hidden)
            if given.get("qkv_bias") and name != "g":
                weights[f"{here}{attention}.{name}_proj.bias"] = random(size)
        weights[f"{here}{attention}.o_proj.weight"] = random(hidden, heads * case.head_dim)
        weights[f"{here}{first}.weight"], weights[f"{here}{second}.weight"] = norm(), norm()
        for name, shape in (("gate", (mlp, hidden)), ("up", (mlp, hidden)), ("down", (hidden, mlp))):
            weights[f"{here}mlp.{name}_proj.weight"] = random(*shape)
    return weights


def write_checkpoint(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor], files: int = 1
) -> Path:
    """Write config and weights, in one file or cut into some with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = list(weights)
    places = {name: f"model-{i % files + 1:05d}-of-{files:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file(
            {n: weights[n] for n in names if places[n] == file}, folder / file, metadata={"format": "pt"}
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.fixture
def make_checkpoint(saved_models: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a case with a tokenizer: make_checkpoint("fla", files=2, norm_eps=1e-5)."""

    def make(name: str, *, files: int = 1, **changes: Any) -> Path:
        case = CASES[name]
        folder = tmp_path / name
        write_checkpoint(folder, {**case.config, **changes}, random_weights(case), files)
        for path in (saved_models / "nsa").iterdir():
            if path.name.startswith(("tokenizer", "special_tokens")):
                shutil.copy(path, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def plain() -> Callable[[str, list[int]], Tensor]:
    """Logits [N, vocabulary] of a case for a row of tokens, by the plain reading of its definition."""

    @cache
    def once(name: str, ids: tuple[int, ...]) -> Tensor:
        return plain_logits(CASES[name], random_weights(CASES[name]), list(ids))

    return lambda name, ids: once(name, tuple(ids))


# --- the definition ---


def plain_logits(case: Case, weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """The whole decoder: embeddings, layers with residuals, norm, head."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    given = case.config
    eps = given["norm_eps" if case.fla else "rms_norm_eps"]
    embeddings = w[f"model.{'embeddings' if case.fla else 'embed_tokens'}.weight"]
    first, second = ("attn_norm", "mlp_norm") if case.fla else ("input_layernorm", "post_attention_layernorm")
    x = torch.stack([embeddings[i] for i in ids]) * given.get("scale_emb", 1)
    added = given["scale_depth"] / math.sqrt(given["num_hidden_layers"]) if case.minicpm else 1.0
    for layer in range(given["num_hidden_layers"]):
        here = f"model.layers.{layer}."
        x = x + added * plain_attention(
            case, w, here + ("attn." if case.fla else "self_attn."), rms(x, w[here + first + ".weight"], eps)
        )
        h = rms(x, w[here + second + ".weight"], eps)
        gate, up = h @ w[here + "mlp.gate_proj.weight"].T, h @ w[here + "mlp.up_proj.weight"].T
        x = x + added * ((gate / (1 + torch.exp(-gate)) * up) @ w[here + "mlp.down_proj.weight"].T)
    head = embeddings if given["tie_word_embeddings"] else w["lm_head.weight"]
    wider = given["hidden_size"] / given["dim_model_base"] if case.minicpm else 1.0
    return (rms(x, w["model.norm.weight"], eps) / wider) @ head.T


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm."""
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def plain_attention(case: Case, w: dict[str, Tensor], here: str, x: Tensor) -> Tensor:
    """One layer's attention over a row's normed states [N, hidden]."""
    given, width = case.config, case.head_dim
    heads = given["num_heads" if case.fla else "num_attention_heads"]
    groups = given["num_kv_heads" if case.fla else "num_key_value_heads"] or heads

    def project(name: str) -> Tensor:
        out = x @ w[f"{here}{name}_proj.weight"].T
        return out + w[f"{here}{name}_proj.bias"] if f"{here}{name}_proj.bias" in w else out

    q = [
        [turned(row.view(heads, width)[h], t, given) for h in range(heads)]
        for t, row in enumerate(project("q"))
    ]
    k = [
        [turned(row.view(groups, width)[g], t, given) for g in range(groups)]
        for t, row in enumerate(project("k"))
    ]
    v = project("v").view(len(x), groups, width)
    gates = torch.ones(len(x), heads, 3, dtype=x.dtype)
    if not case.minicpm:
        gates = 1 / (1 + torch.exp(-project("g").view(len(x), heads, 3)))
    rows = []
    for t in range(len(x)):
        outs: list[Tensor] = []
        for g in range(groups):
            keys, values = torch.stack([k[s][g] for s in range(t + 1)]), v[: t + 1, g]
            mine = range(g * heads // groups, (g + 1) * heads // groups)
            outs += one_query(case, [q[t][h] for h in mine], keys, values, [gates[t, h] for h in mine])
        rows.append(torch.cat(outs) @ w[f"{here}o_proj.weight"].T)
    return torch.stack(rows)


def one_query(
    case: Case, queries: list[Tensor], keys: Tensor, values: Tensor, gates: list[Tensor]
) -> list[Tensor]:
    """The heads of a group at position t, given keys and values 0..t of their KV head."""
    t = len(keys) - 1
    if case.minicpm:
        return [over(q, keys, values, list(range(t + 1))) for q in queries]
    size, window = case.config["block_size"], case.config["window_size"]
    own = t // size
    whole = (t + 1) // size
    k_cmp = [keys[c * size : (c + 1) * size].mean(0) for c in range(whole)]
    v_cmp = [values[c * size : (c + 1) * size].mean(0) for c in range(whole)]
    score = [0.0] * (own + 1)
    compressed = []
    for q in queries:
        p = softmax([float(q @ c) / math.sqrt(len(q)) for c in k_cmp])
        compressed.append(
            sum((share * value for share, value in zip(p, v_cmp, strict=True)), torch.zeros_like(q))
        )
        for c, share in enumerate(p):
            score[c] += share
    forced = {"paper": {0, own - 1, own}, "own": {own}}[case.forced]
    ranked = sorted(range(own + 1), key=lambda j: (j not in forced, -score[j]))[: case.count]
    chosen = [s for s in range(t + 1) if s // size in ranked]
    recent = [s for s in range(t + 1) if t - s < window]
    outs = []
    for q, o_cmp, gate in zip(queries, compressed, gates, strict=True):
        if case.reading == "full":
            outs.append(gate[1] * over(q, keys, values, list(range(t + 1))))
            continue
        out = gate[1] * over(q, keys, values, chosen)
        if case.reading == "nsa":
            out = out + gate[0] * o_cmp
            if window:
                out = out + gate[2] * over(q, keys, values, recent)
        outs.append(out)
    return outs


def over(q: Tensor, keys: Tensor, values: Tensor, tokens: list[int]) -> Tensor:
    """Softmax attention of one query over some tokens."""
    p = softmax([float(q @ keys[s]) / math.sqrt(len(q)) for s in tokens])
    return sum((share * values[s] for share, s in zip(p, tokens, strict=True)), torch.zeros_like(q))


def softmax(logits: list[float]) -> list[float]:
    """Of a list; an empty one stays empty."""
    top = max(logits, default=0.0)
    total = sum(math.exp(x - top) for x in logits)
    return [math.exp(x - top) / total for x in logits]


def turned(x: Tensor, t: int, given: dict[str, Any]) -> Tensor:
    """RoPE: element i of the first half turns with element i of the second by t * theta^(-2i/d)."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        scaling = given.get("rope_scaling")
        angle, size = t * slowed(given["rope_theta"] ** (-i / half), scaling), 1.0
        if scaling and scaling["rope_type"] == "longrope":
            original = scaling["original_max_position_embeddings"]
            beyond = given["max_position_embeddings"] / original
            factors = scaling["long_factor" if beyond > 1 else "short_factor"]
            angle, size = angle / factors[i], math.sqrt(1 + math.log(beyond) / math.log(original))
        a, b = x[i], x[i + half]
        out[i] = size * (a * math.cos(angle) - b * math.sin(angle))
        out[i + half] = size * (b * math.cos(angle) + a * math.sin(angle))
    return out


def slowed(frequency: float, scaling: dict[str, Any] | None) -> float:
    """Llama 3's scaling: long waves slower by the factor, short ones as they are, others between."""
    if scaling is None or scaling["rope_type"] == "longrope":
        return frequency
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = min(1.0, max(0.0, (turns - low) / (high - low)))
    return (1 - share) * frequency / scaling["factor"] + share * frequency
