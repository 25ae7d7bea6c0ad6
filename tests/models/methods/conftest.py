"""Small dense models of three kinds in float64, and a list of methods small enough to leave most keys out."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable, Sequence
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
from nsa_models.methods import (
    Attached,
    Budgeted,
    Memories,
    Method,
    PromptRow,
    QueryBlock,
    RowMethod,
    make_method,
)
from nsa_models.methods._listed import BACKENDS
from nsa_models.methods._placement import Placement
from nsa_models.methods._rotary import Rotation
from nsa_models.methods._rowwise import attend_rows, observe_rows

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
        made[here + "attn_gate.mask_linear_k.weight"] = torch.randn(4, 24, 8, generator=make)
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
        {"budget": 14, "page": 4, "dense_layers": (), "first": 2, "local": 3},
    ],
    "s2-attention": [{"local": 2, "stride": 4, "block": 2}, {"local": 1, "stride": 3, "block": 4}],
    "seer-attention": [
        {"budget": 12, "block": 4, "weights": weights_folder()},
        {"budget": 8, "block": 4, "weights": weights_folder(), "rope": False, "dense_layers": (1,)},
    ],
    "seer-attention-prefill": [
        {"threshold": 0.2, "block": 4, "weights": weights_folder()},
        {
            "ratio": 0.3,
            "block": 3,
            "weights": weights_folder(),
            "rope": False,
            "dense_rows": 1,
            "dense_layers": (1,),
        },
    ],
    "seer-attention-threshold": [{"threshold": 0.2, "block": 4, "weights": weights_folder()}],
    "streaming-llm": [{"budget": 9, "first": 2}, {"budget": 7, "first": 0}],
    "h2o": [
        {"budget": 9, "recent": 4, "first": 2},
        {"budget": 8, "recent": 3, "variant": "mask"},
        {"budget": 60, "recent": 20, "variant": "mask", "heavy_ratio": 0.1, "recent_ratio": 0.2},
        {"budget": 9, "recent": 3, "first": 1, "variant": "oneshot"},
    ],
    "infllm": [{"budget": 13, "first": 1, "local": 8, "block": 2, "representatives": 1, "unit": 8}],
    "snapkv": [
        {"budget": 9, "window": 4, "kernel": 3},
        {"budget": 12, "window": 3, "kernel": 5, "pool": "max", "dense_layers": (1,)},
    ],
    "ada-snapkv": [{"budget": 9, "window": 6, "kernel": 3, "local": 3, "first": 1}],
    "tidal-decode": [
        {"budget": 6, "choosing": (1,), "dense_layers": (0,)},
        {"budget": 5, "choosing": (0, 2), "dense_layers": ()},
    ],
    "mustafar": [
        {"budget": 3, "local": 4},
        {"budget": 2, "value_elements": 4, "local": 0, "dense_layers": (0,)},
    ],
    "dhsa-fixed": [{"budget": 12, "chunk": 2, "block": 4, "first": 2, "local": 4, "tail": 3}],
    "vertical-slash": [
        {"budget": 8, "vertical": 4, "first": 1, "local": 2, "last": 5},
        {"budget": 4, "vertical": 2, "first": 1, "local": 1, "last": 5, "reading": "kernel", "block": 4},
    ],
    "xattention": [{"tau": 0.6, "stride": 2, "block": 4}, {"tau": 0.3, "stride": 4, "block": 4}],
}

# What makes a method without a budget read everything; of the others a large budget must, and this beside it.
FULL: dict[str, dict[str, Any]] = {
    "anchor-attention": {"theta": 1e9},
    "flexprefill": {"least": 400},
    "pbs-attn": {"tau": 1.0},
    "power-attention": {"window": 400},
    "s2-attention": {"local": 400},
    "seer-attention-prefill": {"threshold": 0.0, "ratio": 0.0},
    "seer-attention-threshold": {"threshold": 0.0},
    "xattention": {"tau": 1.1},
    "h2o": {"heavy_ratio": 0.0, "recent_ratio": 0.0},
    "infllm": {"local": 64},  # its far tokens are never dense: they all stand at one distance
    "mustafar": {"value_elements": 0},
}


def small_methods() -> list[Method]:
    """All methods of the list."""
    return [make_method(name, **options) for name, many in LISTED.items() for options in many]


def full_of(method: Method) -> Method:
    """The same method with all that it needs to read everything."""
    budget = {"budget": 400} if isinstance(method, Budgeted) else {}
    return dataclasses.replace(method, **budget, **FULL.get(method.name, {}))


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


@pytest.fixture
def by_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods with `fast` on a CPU, by their plain twin."""
    monkeypatch.setitem(BACKENDS, "cpu", "torch")


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same by the kernels in Triton's interpreter."""
    pytest.importorskip("triton")
    monkeypatch.setitem(BACKENDS, "cpu", "triton")


def whole_prompt(q: Tensor, k: Tensor, method: Method, *, scaling: float = 0.5) -> QueryBlock:
    """All queries [1, H, n, d] of one prompt with its keys [1, H_kv, n, d], planned where it is planned."""
    rotate = Rotation(inv_freq=torch.tensor([1.0, 0.3, 0.1, 0.03]), interleaved=False, at_end=False)
    row = PromptRow(q=q[0], k=k[0], scaling=scaling, layer=0, rotate=rotate)
    return QueryBlock(
        q=q,
        k=k,
        v=torch.randn(k.shape, generator=torch.Generator().manual_seed(7), dtype=k.dtype),
        positions=torch.arange(q.shape[2])[None],
        scaling=scaling,
        layer=0,
        rotate=rotate,
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


INV_FREQ = torch.tensor([1.0, 0.3, 0.1, 0.01], dtype=torch.float64)
turned = Rotation(inv_freq=INV_FREQ, interleaved=False, at_end=False)
"""A rotary embedding for heads of 8."""


def read_sets(
    method: RowMethod,
    q: Tensor,
    k: Tensor,
    *,
    prompt: int,
    end: int | None = None,
    layers: Sequence[int] = (0,),
    pieces: Sequence[int] = (),
    scaling: float = 0.5,
    rotate: Rotation | None = None,
) -> dict[int, dict[int, Tensor]]:
    """What each query reads, [H, t + 1] by layer and position, where the method chose.

    Args:
        method: Any that takes one row at a time.
        q: Queries of a row, the same in all layers.
        k: Its keys, which are its values too.
        prompt: Tokens of the prompt; those behind are decoded.
        end: Tokens in all; those of q by default.
        layers: Layers to run, one after the other.
        pieces: Sizes of the pieces that the prompt is read in; whole by default.
        scaling: Factor of q.k.
        rotate: The rotary embedding; by default that for heads of 8.
    """
    rotation = rotate or turned
    spy, select = dataclasses.replace(method), method.select
    found: dict[int, dict[int, Tensor]] = {layer: {} for layer in layers}

    def look(block: QueryBlock) -> Tensor:
        keep = select(block)
        seen = keep & block.visible
        for row, position in enumerate(block.positions[0].tolist()):
            sets = seen.expand(1, q.shape[1], *seen.shape[2:])[0, :, row, : position + 1]
            found[block.layer][position] = sets
        return keep

    object.__setattr__(spy, "select", look)
    memories = Memories.fresh(1)
    steps: list[tuple[int, int, Any]] = []
    for size in pieces or [prompt]:
        start = steps[-1][1] if steps else 0
        steps += [(start, start + size, "prefill")] if size else []
    steps += [(t, t + 1, "decode") for t in range(prompt, q.shape[2] if end is None else end)]
    for start, stop, phase in steps:
        for layer in layers:
            queries, keys = q[:, :, start:stop], k[:, :, :stop]
            place = Placement.bottom_right(1, stop - start, stop, q.device)
            given: Any = {"scaling": scaling, "layer": layer, "rotate": rotation, "phase": phase}
            if method.phase in ("both", phase):
                attend_rows(spy, queries, keys, keys, place, memories, **given)
            else:
                observe_rows(spy, queries, keys, place, memories, **given)
    return found


def as_sets(keep: Tensor) -> list[set[int]]:
    """Keys that each head reads, of [H, S]."""
    return [set(row.nonzero().flatten().tolist()) for row in keep]


def causal_weights(q: Tensor, k: Tensor, scaling: float = 0.5) -> Tensor:
    """Dense attention [H, N, N] of a row."""
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = (q @ keys.transpose(-1, -2))[0] * scaling
    later = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
    return logits.masked_fill(later, float("-inf")).softmax(-1)
