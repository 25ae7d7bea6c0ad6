"""Small dense models of three kinds in float64, and a list of methods small enough to leave most keys out."""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM
from nsa_models.methods import Attached, Method, PromptRow, QueryBlock, make_method
from nsa_models.methods._rotary import Rotation

VOCAB = 61

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": lambda **changes: LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes})),
    "qwen3": lambda **changes: Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, **changes})),
    "decoder": lambda **changes: NSADecoderForCausalLM(
        NSADecoderConfig(**{**SHAPE, "attention": "full", **changes})
    ),
}


@functools.cache
def weights_folder() -> str:
    """A folder of small weights for methods that have some: they leave the logits as they are."""
    folder = tempfile.mkdtemp(prefix="nsa-eval-methods-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = {}
    for layer in range(SHAPE["num_hidden_layers"]):
        here = f"model.layers.{layer}.self_attn."
        made[here + "delta.weight"] = torch.randn(2, 16, generator=torch.Generator().manual_seed(layer))
        made[here + "A"] = torch.zeros(2)
        make = torch.Generator().manual_seed(10 + layer)
        made[here + "attn_gate.attngate_linear_q.weight"] = torch.randn(2, 2, 8, 8, generator=make)
        made[here + "attn_gate.attngate_linear_k.weight"] = torch.randn(2, 24, 8, generator=make)
    save_file(made, f"{folder}/model.safetensors")
    return folder


# A method is tested by standing here: options under which a row of 40 tokens has far more than it reads.
LISTED: dict[str, list[dict[str, Any]]] = {
    "anchor-attention": [
        {"theta": 0.1, "block": 2, "step": 2},
        {"theta": 0.5, "block": 3, "step": 2, "dense_layers": (1,)},
    ],
    "block-sparse": [{"budget": 8, "block": 4}, {"budget": 9, "block": 3, "dense_layers": (0,)}],
    "exact-top": [
        {"budget": 9, "first": 2, "local": 3},
        {"budget": 6, "first": 0, "local": 0, "dense_layers": (1,)},
    ],
    "flexprefill": [
        {"gamma": 0.5, "tau": 0.0, "least": 7, "block": 4},
        {"gamma": 0.4, "tau": 1.0, "least": 3, "block": 4},
    ],
    "moba": [{"budget": 8, "chunk": 4}, {"budget": 9, "chunk": 3, "dense_layers": (2,)}],
    "pbs-attn": [{"tau": 0.5, "block": 2, "segment": 4}, {"tau": 0.3, "block": 3, "segment": 3}],
    "power-attention": [{"window": 1, "block": 2}, {"window": 3, "block": 1, "dense_layers": (0,)}],
    "infllm-v2": [
        {"budget": 12, "kernel": 4, "stride": 2, "block": 4, "window": 4, "dense_length": 0},
        {
            "budget": 8,
            "kernel": 4,
            "stride": 2,
            "block": 4,
            "window": 0,
            "dense_length": 16,
            "first_blocks": 0,
        },
    ],
    "nosa": [
        {
            "budget": 16,
            "by_query": 12,
            "kernel": 4,
            "stride": 2,
            "block": 4,
            "window": 4,
            "weights": weights_folder(),
        },
    ],
    "quest": [
        {"budget": 12, "page": 4, "dense_layers": (0,)},
        {"budget": 12, "page": 4, "dense_layers": (), "reading": "kernel"},
    ],
    "s2-attention": [{"local": 2, "stride": 4, "block": 2}, {"local": 1, "stride": 3, "block": 4}],
    "seer-attention": [
        {"budget": 12, "block": 4, "weights": weights_folder()},
        {"budget": 8, "block": 4, "weights": weights_folder(), "rope": False, "dense_layers": (1,)},
    ],
    "streaming-llm": [{"budget": 9, "first": 2}, {"budget": 7, "first": 0}],
    "vertical-slash": [
        {"budget": 8, "vertical": 4, "first": 1, "local": 2, "last": 5},
        {"budget": 4, "vertical": 2, "first": 1, "local": 1, "last": 5, "reading": "kernel", "block": 4},
    ],
    "xattention": [{"tau": 0.6, "stride": 2, "block": 4}, {"tau": 0.3, "stride": 4, "block": 4}],
}

# What makes a method without a budget read everything; of the others a large budget must.
FULL: dict[str, dict[str, Any]] = {
    "anchor-attention": {"theta": 1e9},
    "flexprefill": {"least": 400},
    "pbs-attn": {"tau": 1.0},
    "power-attention": {"window": 400},
    "s2-attention": {"local": 400},
    "xattention": {"tau": 1.1},
}


def small_methods() -> list[Method]:
    """All methods of the list."""
    return [make_method(name, **options) for name, many in LISTED.items() for options in many]


@pytest.fixture(params=small_methods(), ids=lambda method: method.label)
def method(request: pytest.FixtureRequest) -> Method:
    """Each method of the list in turn."""
    return request.param


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """Make a model in float64: make_model("llama", num_hidden_layers=1)."""

    def make(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
        torch.manual_seed(seed)
        return MODELS[kind](**changes).to(torch.float64).eval()

    return make


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest, make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Each kind of model in turn."""
    return make_model(request.param)


def whole_prompt(q: Tensor, k: Tensor, method: Method, *, scaling: float = 0.5) -> QueryBlock:
    """All queries [1, H, n, d] of one prompt with its keys [1, H_kv, n, d], planned where it is planned."""
    row = PromptRow(q=q[0], k=k[0], scaling=scaling, layer=0)
    return QueryBlock(
        q=q,
        k=k,
        v=torch.randn(k.shape, generator=torch.Generator().manual_seed(7), dtype=k.dtype),
        positions=torch.arange(q.shape[2])[None],
        scaling=scaling,
        layer=0,
        rotate=Rotation(inv_freq=torch.tensor([1.0, 0.3, 0.1, 0.03]), interleaved=False, at_end=False),
        plans=None if method.chunked_prefill else [method.plan(row)],
    )


def prompt_sets(method: Method, q: Tensor, k: Tensor) -> list[list[set[int]]]:
    """The keys that each head's queries of one prompt read: [head][position]."""
    block = whole_prompt(q, k, method)
    keep = (method.select(block) & block.visible).expand(1, q.shape[1], -1, -1)[0]
    return [[set(query.nonzero().flatten().tolist()) for query in head] for head in keep]


def random_row(count: int, *, seed: int = 0, heads: int = 4, groups: int = 2) -> tuple[Tensor, Tensor]:
    """Queries [1, H, count, 8] and keys [1, H_kv, count, 8]."""
    maker = torch.Generator().manual_seed(seed)
    q = torch.randn(1, heads, count, 8, generator=maker, dtype=torch.float64)
    return q, torch.randn(1, groups, count, 8, generator=maker, dtype=torch.float64)


def tokens(count: int, seed: int = 1) -> Tensor:
    """[count] random tokens."""
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


class Rows:
    """Rows of a batch, read in right-padded pieces as the engine does: holes stay in transformers' caches."""

    def __init__(self, model: PreTrainedModel, count: int, attached: Attached | None = None) -> None:
        self.model, self.attached = model, attached
        self.own = isinstance(model, NSADecoderForCausalLM)
        self.cache = None if self.own else DynamicCache(config=model.config)
        self.lengths = [0] * count
        self.mask = torch.zeros(count, 0, dtype=torch.bool)

    @torch.no_grad()
    def feed(self, pieces: list[Tensor], *, decode: bool = False) -> list[Tensor]:
        """Read a piece of each row; each row's logits [tokens, V]."""
        counts = [len(piece) for piece in pieces]
        width = max(counts)
        device = self.model.device
        ids = torch.zeros(len(pieces), width, dtype=torch.long)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)] = piece
        new = torch.arange(width) < torch.tensor(counts)[:, None]
        given: dict[str, Any] = {
            "input_ids": ids.to(device),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self.own:
            given["attention_mask"] = new.to(device)
        elif not bool(torch.cat([self.mask, new], 1).all()):
            given["attention_mask"] = torch.cat([self.mask, torch.ones_like(new)], 1).to(device)
            first = torch.tensor(self.lengths)[:, None]
            last = first + torch.tensor(counts)[:, None].clamp(min=1) - 1
            given["position_ids"] = torch.minimum(first + torch.arange(width), last).to(device)
        told: Any = contextlib.nullcontext()
        if self.attached is not None:
            told = self.attached.decoding(counts) if decode else self.attached.prefilling(counts)
        with told:
            output = self.model(**given)
        self.cache = output.past_key_values
        self.mask = torch.cat([self.mask, new], 1)
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        return [logits[:count] for logits, count in zip(output.logits, counts, strict=True)]


def read_alone(model: PreTrainedModel, attached: Attached | None, row: Tensor, steps: int) -> Tensor:
    """Logits [tokens, V] of one row: all but the last `steps` tokens as one prompt, those one by one."""
    rows = Rows(model, 1, attached)
    parts = rows.feed([row[: len(row) - steps]])
    for token in row[len(row) - steps :]:
        parts += rows.feed([token[None]], decode=True)
    return torch.cat(parts)
