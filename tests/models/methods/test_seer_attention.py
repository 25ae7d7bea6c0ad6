"""SeerAttention-R's gate against its definition, on queries and keys as they are before RoPE."""

import dataclasses
import math
import re

import pytest
import torch
from safetensors.torch import save_file

from nsa_models.methods import MethodError, QueryBlock, attach, make_method
from nsa_models.methods._gate import DecodeGate
from nsa_models.methods._rotary import Rotation

from .conftest import read_alone, tokens

FREQUENCIES = torch.tensor([1.0, 0.3, 0.1, 0.03], dtype=torch.float64)
ROTATION = Rotation(inv_freq=FREQUENCIES, interleaved=False, at_end=False)
PLACE = "model.layers.{}.self_attn.attn_gate."


def gate(heads="Qproj", *, norm=False, pools=3, width=8, layers=3, seed=0):
    """Weights of a gate for 4 heads of 8 on 2 KV heads, under the names of its authors' file."""
    make, made = torch.Generator().manual_seed(seed), {}
    for layer in range(layers):
        here = PLACE.format(layer)
        if heads != "Qavg":
            shape = (2, 2, 8, width) if heads == "Qproj" else (2, 8, width)
            made[here + "attngate_linear_q.weight"] = torch.randn(*shape, generator=make)
        made[here + "attngate_linear_k.weight"] = torch.randn(2, 8 * pools, width, generator=make)
        if norm:
            for name in ("q", "k"):
                made[here + f"attngate_{name}norm.weight"] = 0.5 + torch.rand(width, generator=make)
    return made


def turned(x, t):
    """RoPE in halves over the first 8 numbers of x, by hand."""
    out = x.clone()
    for i, frequency in enumerate(FREQUENCIES.tolist()):
        c, s = math.cos(t * frequency), math.sin(t * frequency)
        out[i], out[i + 4] = x[i] * c - x[i + 4] * s, x[i + 4] * c + x[i] * s
    return out


def definition(made, q, k, t, *, rope, pooling, count=None, threshold=None, block=4):
    """Keys of the query at t for each KV head, of `count` blocks or of those above a threshold.

    q [4, 8] and k [2, S, 8] are before RoPE.
    """

    def normed(x, name):
        weight = made.get(PLACE.format(1) + name)
        return x if weight is None else x / (x.pow(2).mean() + 1e-6).sqrt() * weight.double()

    sets = []
    for group in range(2):
        linear = made.get(PLACE.format(1) + "attngate_linear_q.weight")
        mine = q[2 * group : 2 * group + 2]
        if linear is None:
            query = mine.mean(0)
        elif linear.dim() == 4:
            query = sum(mine[i] @ linear[group, i].double() for i in range(2))
        else:
            query = mine.mean(0) @ linear[group].double()
        query = normed(query, "attngate_qnorm.weight")
        query = turned(query, t) if rope else query
        own, logits = t // block, {}
        for b in range(own + 1):
            if (b + 1) * block > t + 1:
                logits[b] = 0.0
                continue
            keys = k[group, b * block : (b + 1) * block]
            pooled = {"max": keys.amax(0), "min": keys.amin(0), "avg": keys.mean(0)}
            parts = torch.cat([pooled[pooling[i : i + 3]] for i in range(0, len(pooling), 3)])
            key = normed(
                parts @ made[PLACE.format(1) + "attngate_linear_k.weight"][group].double(),
                "attngate_knorm.weight",
            )
            key = turned(key, b * block) if rope else key
            logits[b] = float(query @ key) / math.sqrt(len(query))
        if threshold is None:
            chosen = {*sorted(logits, key=lambda b: (-logits[b], b))[:count], own}
        else:
            total = sum(math.exp(logit) for logit in logits.values())
            chosen = {b for b in logits if math.exp(logits[b]) / total > threshold} | {own}
        sets.append({s for b in chosen for s in range(b * block, min(b * block + block, t + 1))})
    return sets


def steps():
    """Decode steps at several positions: t, q [4, 8] and k [2, 40, 8] before RoPE, and the block."""
    make = torch.Generator().manual_seed(3)
    for t in (0, 2, 3, 11, 12, 20, 23, 38, 39):
        q = torch.randn(1, 4, 1, 8, generator=make, dtype=torch.float64)
        k = torch.randn(1, 2, 40, 8, generator=make, dtype=torch.float64)
        at = torch.tensor([[t]])
        turned_keys = ROTATION(k, torch.arange(40)[None])
        block = QueryBlock(
            q=ROTATION(q, at), k=turned_keys, positions=at, scaling=1.0, layer=1, rotate=ROTATION
        )
        yield t, q[0, :, 0], k[0], block


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("heads", "pooling", "width"), [("Qproj", "maxminavg", 8), ("Qavgproj", "minavg", 12), ("Qavg", "avg", 8)]
)
def test_it_reads_what_the_definition_says(heads, pooling, width, norm, rope, tmp_path):
    made = gate(heads, norm=norm, pools=len(pooling) // 3, width=width)
    save_file(made, tmp_path / "gate.safetensors")
    method = make_method("seer-attention", 12, weights=str(tmp_path), block=4, pooling=pooling, rope=rope)
    sizes = set()
    for t, q, k, block in steps():
        keep = method.select(block)
        sets = definition(made, q, k, t, count=3, rope=rope, pooling=pooling)
        for head in range(4):
            assert {int(s) for s in keep[0, head, 0].nonzero()} == sets[head // 2], t
            assert method.kv_reads_least(t + 1) <= len(sets[head // 2]) <= method.kv_reads(t + 1)
            sizes.add(len(sets[head // 2]) in (method.kv_reads_least(t + 1), method.kv_reads(t + 1)))
    assert sizes == {True}


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("rope", [True, False])
def test_by_a_threshold_it_reads_what_the_definition_says(rope, threshold, tmp_path):
    made = gate(norm=True)
    save_file(made, tmp_path / "gate.safetensors")
    method = make_method(
        "seer-attention-threshold", threshold=threshold, weights=str(tmp_path), block=4, rope=rope
    )
    read = []
    for t, q, k, block in steps():
        keep = method.select(block)
        sets = definition(made, q, k, t, threshold=threshold, rope=rope, pooling="maxminavg")
        for head in range(4):
            assert {int(s) for s in keep[0, head, 0].nonzero()} == sets[head // 2], t
            assert method.kv_reads_least(t + 1) <= len(sets[head // 2]) <= method.kv_reads(t + 1)
            read.append((method.kv_reads_least(t + 1), len(sets[head // 2]), t + 1))
    # At 0 everything, close to 1 little but the last block, between them something between.
    assert all(size == whole for _, size, whole in read) == (threshold == 0)
    assert any(least < size < whole for least, size, whole in read) == (0 < threshold < 0.9)


def test_a_share_has_to_be_above_the_threshold(tmp_path):
    save_file(gate(), tmp_path / "gate.safetensors")
    method = make_method("seer-attention-threshold", threshold=0.25, weights=str(tmp_path), block=4)
    for t, size in ((11, 12), (15, 4)):  # three blocks of 1 / 3, four of 1 / 4
        block = next(block for at, _, _, block in steps() if at == 39)
        even = dataclasses.replace(block, q=0 * block.q, positions=torch.tensor([[t]]))
        assert (method.select(even).sum(-1) == size).all()


def test_both_choices_read_one_gate_and_refuse_what_is_not_theirs(tmp_path):
    save_file(gate(), tmp_path / "gate.safetensors")
    by_threshold = make_method("seer-attention-threshold", weights=str(tmp_path))
    by_budget = make_method("seer-attention", 4096, weights=str(tmp_path))
    assert by_threshold.digest == by_budget.digest
    assert by_threshold.label == (
        f"seer-attention-threshold@threshold=0.002-weights={by_threshold.digest[:8]}"
    )
    for options, message in (
        ({"threshold": 1.0}, "threshold must be from 0 and below 1, got 1.0"),
        ({"threshold": -0.1}, "threshold must be from 0 and below 1, got -0.1"),
        ({"block": 0}, "block must be at least 1 token, got 0"),
        ({"budget": 4096}, "has no budget, got 4096"),
    ):
        with pytest.raises(MethodError, match=f"seer-attention-threshold:? {re.escape(message)}"):
            make_method("seer-attention-threshold", weights=str(tmp_path), **options)


@pytest.mark.parametrize(
    ("kind", "names"), [("llama", ("q_proj", "k_proj")), ("qwen3", ("q_norm", "k_norm"))]
)
@torch.no_grad()
def test_the_gate_sees_queries_and_keys_before_rope(kind, names, make_model, tmp_path, monkeypatch):
    save_file(gate(), tmp_path / "gate.safetensors")
    model, row = make_model(kind), tokens(30)
    made = {name: [] for name in names}
    for name in names:
        part = getattr(model.model.layers[1].self_attn, name)
        part.register_forward_hook(
            lambda _m, _a, out, name=name: made[name].append(out.reshape(out.shape[1], -1, 8))
        )
    seen = []

    def spy(self, block):
        if block.layer == 1:
            places = torch.arange(block.k.shape[2])[None]
            seen.append((block.rotate(block.q, -block.positions), block.rotate(block.k, -places)))
        return scores(self, block)

    scores = DecodeGate.scores
    monkeypatch.setattr(DecodeGate, "scores", spy)
    with attach(model, make_method("seer-attention", 8, weights=str(tmp_path), block=4)) as attached:
        for hooked in made.values():
            hooked.clear()  # attaching looks at queries, too
        read_alone(model, attached, row, 1)
    (q, k) = seen[0]
    torch.testing.assert_close(q[0, :, 0], made[names[0]][-1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(k[0].transpose(0, 1), torch.cat(made[names[1]]), rtol=1e-5, atol=1e-6)


def test_what_cant_be_is_refused(tmp_path, make_model):
    torch.save({}, tmp_path / "attn_gate_weights.pth")
    with pytest.raises(MethodError, match=r"pickles aren't read; docs/trained.md says how to convert"):
        make_method("seer-attention", 8, weights=str(tmp_path), block=4)
    save_file(gate(layers=2), tmp_path / "gate.safetensors")
    with pytest.raises(MethodError, match="budget must be a multiple of 4 KV tokens"):
        make_method("seer-attention", 10, weights=str(tmp_path), block=4)
    with pytest.raises(MethodError, match=r"holds no gate for layer 2 of 3; give this model's gate"):
        attach(make_model("llama"), make_method("seer-attention", 8, weights=str(tmp_path), block=4))
    halved = gate()
    del halved[PLACE.format(0) + "attngate_linear_k.weight"]
    for made, options, message in (
        (halved, {}, "holds no attngate_linear_k.weight for layer 0"),
        (
            gate(),
            {"pooling": "avg"},
            r"attngate_linear_k.weight of layer 0 is \[2, 24, 8\]; this model with pooling avg",
        ),
    ):
        save_file(made, tmp_path / "gate.safetensors")
        model = make_model("llama")
        method = make_method("seer-attention", 8, weights=str(tmp_path), block=4, **options)
        with attach(model, method) as attached, pytest.raises(MethodError, match=message):
            read_alone(model, attached, tokens(20), 1)
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = make_model("llama", rope_parameters=yarn)
    with pytest.raises(
        MethodError, match=r"keys as they are before the rotary embedding, .* \(yarn\) scales"
    ):
        attach(model, make_method("seer-attention", 8, weights=str(tmp_path), block=4))
