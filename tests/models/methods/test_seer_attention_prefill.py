"""SeerAttention's gate for prompts against its definition, on queries and keys as they are before RoPE."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.methods import Method, MethodError, PromptRow, attach, make_method
from nsa_models.methods._rotary import Rotation
from nsa_models.methods.seer_attention_prefill import SeerAttentionPrefill

from .conftest import Rows, random_row, read_alone, tokens

FREQUENCIES = torch.tensor([1.0, 0.3, 0.1, 0.03], dtype=torch.float64)
ROTATION = Rotation(inv_freq=FREQUENCIES, interleaved=False, at_end=False)
PLACE = "model.layers.{}.self_attn.attn_gate."


def gate(
    *, of_queries: int = 0, pools: int = 3, width: int = 8, layers: int = 3, size: float = 1.0
) -> dict[str, Tensor]:
    """Weights of a gate for 4 heads of 8 on 2 KV heads, under the names of its authors' file.

    Without `of_queries`, the pools of a linear layer for queries, each query head has a layer for keys.
    """
    make, made = torch.Generator().manual_seed(0), {}
    for layer in range(layers):
        here = PLACE.format(layer)
        if of_queries:
            made[here + "mask_linear_q.weight"] = torch.randn(4, 8 * of_queries, width, generator=make) * size
        heads = 2 if of_queries else 4
        made[here + "mask_linear_k.weight"] = torch.randn(heads, 8 * pools, width, generator=make) * size
    return made


def method_of(folder: Path, made: dict[str, Tensor], **options: Any) -> Method:
    save_file(made, folder / "gate.safetensors")
    return make_method("seer-attention-prefill", weights=str(folder), **{"block": 4, **options})


def turned(x: Tensor, t: int) -> Tensor:
    """RoPE in halves over the first 8 numbers of x, by hand."""
    out = x.clone()
    for i, frequency in enumerate(FREQUENCIES.tolist()):
        c, s = math.cos(t * frequency), math.sin(t * frequency)
        out[i], out[i + 4] = x[i] * c - x[i + 4] * s, x[i + 4] * c + x[i] * s
    return out


def of_block(x: Tensor, b: int, pooling: str, block: int) -> Tensor:
    """Pools of tokens [b block, b block + block) of x [n, 8], as far as there are any."""
    mine = x[b * block : (b + 1) * block]
    made = {"max": mine.amax(0), "min": mine.amin(0), "avg": mine.mean(0)}
    return torch.cat([made[pooling[i : i + 3]] for i in range(0, len(pooling), 3)])


def logits_by_definition(
    made: dict[str, Tensor], q: Tensor, k: Tensor, head: int, method: SeerAttentionPrefill
) -> list[list[float]]:
    """Of one of 4 heads and layer 1: q [n, 8] and k [n, 8] before RoPE; row i has blocks 0..i."""
    of_queries = made.get(PLACE.format(1) + "mask_linear_q.weight")
    of_keys = made[PLACE.format(1) + "mask_linear_k.weight"].double()
    blocks, queries, keys = math.ceil(len(q) / method.block), [], []
    for b in range(blocks):
        query = of_block(q, b, method.query_pooling, method.block)
        if of_queries is not None:
            query = query @ of_queries[head].double()
        key = of_block(k, b, method.pooling, method.block)
        key = key @ of_keys[head if of_queries is None else head // 2]
        place = b * method.block
        queries.append(turned(query, place) if method.rope else query)
        keys.append(turned(key, place) if method.rope else key)
    width = len(keys[0])
    return [[float(queries[i] @ keys[j]) / math.sqrt(width) for j in range(i + 1)] for i in range(blocks)]


def blocks_by_definition(logits: list[list[float]], i: int, method: SeerAttentionPrefill) -> set[int]:
    row, blocks = logits[i], len(logits)
    if i >= blocks - method.dense_rows:
        return {*range(i + 1)}
    falling = sorted(range(i + 1), key=lambda j: (-row[j], j))
    if method.ratio:
        return {*falling[: max(1, math.floor((1 - math.sqrt(1 - method.ratio)) * blocks))]}
    total = sum(math.exp(one - max(row)) for one in row)
    shares = [math.exp(one - max(row)) / total for one in row]
    return {j for j in range(i + 1) if shares[j] > method.threshold} or {falling[0]}


def row_of(q: Tensor, k: Tensor, layer: int = 1) -> PromptRow:
    """A prompt whose queries and keys before RoPE are q [1, H, n, 8] and k [1, H_kv, n, 8]."""
    at = torch.arange(q.shape[2])[None]
    return PromptRow(q=ROTATION(q, at)[0], k=ROTATION(k, at)[0], scaling=0.5, layer=layer, rotate=ROTATION)


@pytest.mark.parametrize(
    ("weights", "pooling"),
    [
        ({}, {}),
        ({"pools": 1}, {"pooling": "avg"}),
        ({"of_queries": 1, "width": 12}, {}),
        ({"of_queries": 2, "pools": 2}, {"pooling": "minavg", "query_pooling": "maxmin"}),
    ],
    ids=["published", "keys-avg", "linear-q-wide", "linear-q-two-pools"],
)
@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.1},
        {"threshold": 0.6, "block": 3, "dense_rows": 0},
        {"threshold": 0.0},
        {"ratio": 0.4, "rope": False},
        {"ratio": 0.05, "block": 5, "dense_rows": 1},
        {"ratio": 1.0},
    ],
    ids=str,
)
def test_sets_follow_the_definition(
    weights: dict[str, Any], pooling: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    made = gate(size=0.3, **weights)
    method = method_of(tmp_path, made, **pooling, **options)
    assert isinstance(method, SeerAttentionPrefill)
    for count in (1, 7, 43):
        q, k = random_row(count, seed=count)
        keep = method.reads(method.plan(row_of(q, k)), torch.arange(count), count)
        for head in range(4):
            logits = logits_by_definition(made, q[0, head], k[0, head // 2], head, method)
            for t in range(count):
                chosen = blocks_by_definition(logits, t // method.block, method)
                keys = {s for s in range(t + 1) if s // method.block in chosen}
                assert {s for s in keep[head, t].nonzero().flatten().tolist() if s <= t} == keys, (head, t)
                assert method.kv_reads_least(t + 1) <= len(keys)


def test_a_block_of_queries_reads_the_best_block_where_no_share_is_above_the_threshold(
    tmp_path: Path,
) -> None:
    method = method_of(tmp_path, gate(size=0.01), threshold=0.9, dense_rows=0)
    row = row_of(*random_row(40))
    assert isinstance(method, SeerAttentionPrefill)
    later = torch.ones(10, 10, dtype=torch.bool).triu(1)
    best = method.scores(row).masked_fill(later, float("-inf")).argmax(-1)
    chosen = method.plan(row)
    assert (chosen.sum(-1) == 1).all()
    assert torch.equal(chosen.byte().argmax(-1), best)
    assert (best != torch.arange(10)).any()  # the queries' own block has no privilege


def test_a_share_has_to_be_above_the_threshold_and_of_equal_blocks_the_first_is_best(tmp_path: Path) -> None:
    q, k = random_row(24)
    plan = method_of(tmp_path, gate(), threshold=0.25).plan(row_of(0 * q, k))
    assert plan[0].tolist() == [
        [True, False, False, False, False, False],
        [True, True, False, False, False, False],
        [True, True, True, False, False, False],
        [True, False, False, False, False, False],  # each has 1 / 4
        [True, True, True, True, True, False],
        [True, True, True, True, True, True],
    ]


def test_the_ratio_is_the_part_of_causal_blocks_that_is_read(tmp_path: Path) -> None:
    row = row_of(*random_row(800))
    for ratio in (0.1, 0.3, 0.75):
        method = method_of(tmp_path, gate(), ratio=ratio, dense_rows=0)
        read = method.plan(row).sum((1, 2)) / (200 * 201 / 2)
        assert (read - ratio).abs().max() < 0.01


def test_labels_say_what_decides(tmp_path: Path) -> None:
    made = gate()
    named = {
        "seer-attention-prefill@threshold=0.002": method_of(tmp_path, made, block=64),
        "seer-attention-prefill@threshold=0.0005": method_of(tmp_path, made, block=64, threshold=5e-4),
        "seer-attention-prefill@ratio=0.2": method_of(tmp_path, made, block=64, ratio=0.2),
    }
    for label, method in named.items():
        said = method.describe()
        digest = said["parameters"]["weights"].removeprefix("sha256:")
        assert len(digest) == 64
        assert method.label == said["label"] == f"{label}-weights={digest[:8]}"
        assert ("ratio" in said["declarations"]["budget_unit"]) == ("ratio" in label)
    before = method_of(tmp_path, made).label
    next(iter(made.values()))[0, 0, 0] += 1
    assert method_of(tmp_path, made).label != before


@pytest.mark.parametrize(
    ("kind", "names"), [("llama", ("q_proj", "k_proj")), ("qwen3", ("q_norm", "k_norm"))]
)
@torch.no_grad()
def test_the_gate_sees_a_padded_prompt_before_rope(
    kind: str,
    names: tuple[str, str],
    make_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, method = make_model(kind), method_of(tmp_path, gate())
    made: dict[str, Tensor] = {}
    for name in names:
        part = getattr(model.model.layers[1].self_attn, name)
        part.register_forward_hook(
            lambda _module, _given, out, name=name: made.update({name: out.reshape(*out.shape[:2], -1, 8)})
        )
    seen = []

    def spy(self: SeerAttentionPrefill, row: PromptRow) -> Tensor:
        if row.layer == 1:
            assert row.rotate is not None
            at = torch.arange(row.length)[None]
            seen.append([row.rotate(x[None], -at)[0].transpose(0, 1) for x in (row.q, row.k)])
        return scores(self, row)

    scores = SeerAttentionPrefill.scores
    monkeypatch.setattr(SeerAttentionPrefill, "scores", spy)
    with attach(model, method) as attached:
        Rows(model, 2, attached).feed([tokens(30), tokens(17, seed=2)])
    assert [len(q) for q, _ in seen] == [30, 17]
    for row, pair in enumerate(seen):
        for name, x in zip(names, pair, strict=True):
            torch.testing.assert_close(x, made[name][row, : len(x)], rtol=1e-5, atol=1e-6)


def test_options_that_make_no_choice_are_refused(tmp_path: Path) -> None:
    made = gate()
    assert isinstance(method_of(tmp_path, made), SeerAttentionPrefill)
    for options, message in (
        ({"threshold": -0.1}, "threshold must be from 0 and below 1, got -0.1"),
        ({"threshold": 1}, r"threshold must be from 0 and below 1, got 1\.0"),
        ({"ratio": 1.1}, r"ratio must be within 0 and 1, got 1\.1"),
        ({"ratio": 0.2, "threshold": 0.01}, r"threshold must be left out where ratio = 0\.2 decides"),
        ({"dense_rows": -1}, "dense_rows must be at least 0 blocks, got -1"),
        ({"block": 0}, "block must be at least 1 token, got 0"),
    ):
        with pytest.raises(MethodError, match=f"seer-attention-prefill: {message}"):
            method_of(tmp_path, made, **options)
    with pytest.raises(MethodError, match=r"seer-attention-prefill has no budget, got 4096: .* threshold"):
        make_method("seer-attention-prefill", 4096, weights=str(tmp_path))
    with pytest.raises(MethodError, match="weights must name the folder or the safetensors file"):
        make_method("seer-attention-prefill")


def test_weights_of_the_decode_gate_are_refused(tmp_path: Path) -> None:
    save_file(
        {PLACE.format(0) + "attngate_linear_k.weight": torch.ones(2, 24, 8)}, tmp_path / "d.safetensors"
    )
    with pytest.raises(MethodError, match=r"must hold tensors named like \.mask_linear_, and holds none"):
        make_method("seer-attention-prefill", weights=str(tmp_path))


def test_gates_of_other_models_are_refused(tmp_path: Path) -> None:
    row = row_of(*random_row(20), layer=2)
    for weights, options, message in (
        ({"layers": 2}, {}, "holds no mask_linear_k.weight for layer 2"),
        (
            {},
            {"pooling": "avg"},
            r"mask_linear_k.weight of layer 2 is \[4, 24, 8\]; this model with pooling avg takes "
            r"\[4, 8, 'width'\]",
        ),
        (
            {"of_queries": 2},
            {},
            r"mask_linear_q.weight of layer 2 is \[4, 16, 8\]; this model with pooling avg takes "
            r"\[4, 8, 'width'\]",
        ),
        ({"width": 6}, {}, "makes queries of width 8 and keys of width 6; they must be the same"),
        ({"of_queries": 1, "width": 6}, {}, "a gate of width 6 is rotated as the model"),
    ):
        with pytest.raises(MethodError, match=f"seer-attention-prefill: .*{message}"):
            method_of(tmp_path, gate(**weights), **options).plan(row)
    unturned = dataclasses.replace(row, rotate=lambda q, _moved: q)
    with pytest.raises(MethodError, match="set rope=false if the gate has none"):
        method_of(tmp_path, gate()).plan(unturned)
    assert method_of(tmp_path, gate(), rope=False).plan(unturned).shape == (4, 5, 5)


def test_rotary_embeddings_that_cant_be_taken_off_are_refused(
    make_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    for parameters, message in (
        (yarn, r"keys as they are before the rotary embedding, .* \(yarn\) scales"),
        (
            {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
            r"\(dynamic\) changes its frequencies with the length",
        ),
    ):
        model = make_model("llama", rope_parameters=parameters)
        with pytest.raises(MethodError, match=message):
            attach(model, method_of(tmp_path, gate()))


def test_models_with_layers_that_have_no_gate_are_refused(
    make_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model, method = make_model("llama"), method_of(tmp_path, gate(layers=1))
    with pytest.raises(MethodError, match=r"holds no gate for layers 1, 2 of 3; give this model's gate"):
        attach(model, method)
    with attach(model, dataclasses.replace(method, dense_layers=(1, 2))) as attached:
        assert read_alone(model, attached, tokens(20), 1).isfinite().all()
