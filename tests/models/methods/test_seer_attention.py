"""SeerAttention-R's gate against its definition, on queries and keys as they are before RoPE."""

import math

import pytest
import torch
from safetensors.torch import save_file

from nsa_models.methods import MethodError, QueryBlock, attach, make_method
from nsa_models.methods._rotary import Rotation
from nsa_models.methods.seer_attention import SeerAttention

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


def definition(made, q, k, t, *, count, rope, pooling, block=4):
    """Keys of the query at t for each KV head; q [4, 8] and k [2, S, 8] before RoPE."""

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
        chosen = {*sorted(logits, key=lambda b: (-logits[b], b))[:count], own}
        sets.append({s for b in chosen for s in range(b * block, min(b * block + block, t + 1))})
    return sets


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("heads", "pooling", "width"), [("Qproj", "maxminavg", 8), ("Qavgproj", "minavg", 12), ("Qavg", "avg", 8)]
)
def test_it_reads_what_the_definition_says(heads, pooling, width, norm, rope, tmp_path):
    made = gate(heads, norm=norm, pools=len(pooling) // 3, width=width)
    save_file(made, tmp_path / "gate.safetensors")
    method = make_method("seer-attention", 12, weights=str(tmp_path), block=4, pooling=pooling, rope=rope)
    make = torch.Generator().manual_seed(3)
    sizes = set()
    for t in (0, 2, 3, 11, 12, 20, 23, 38, 39):
        q = torch.randn(1, 4, 1, 8, generator=make, dtype=torch.float64)
        k = torch.randn(1, 2, 40, 8, generator=make, dtype=torch.float64)
        places = torch.arange(40)[None]
        block = QueryBlock(
            q=ROTATION(q, torch.tensor([[t]])),
            k=ROTATION(k, places),
            positions=torch.tensor([[t]]),
            scaling=1.0,
            layer=1,
            rotate=ROTATION,
        )
        keep = method.select(block)
        sets = definition(made, q[0, :, 0], k[0], t, count=3, rope=rope, pooling=pooling)
        for head in range(4):
            assert {int(s) for s in keep[0, head, 0].nonzero()} == sets[head // 2], t
            assert method.kv_reads_least(t + 1) <= len(sets[head // 2]) <= method.kv_reads(t + 1)
            sizes.add(len(sets[head // 2]) in (method.kv_reads_least(t + 1), method.kv_reads(t + 1)))
    assert sizes == {True}


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

    scores = SeerAttention.scores
    monkeypatch.setattr(SeerAttention, "scores", spy)
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
    row = tokens(20)
    for options, message in (
        ({}, "holds no attngate_linear_q.weight for layer 2"),
        (
            {"pooling": "avg"},
            r"attngate_linear_k.weight of layer 0 is \[2, 24, 8\]; this model with pooling avg",
        ),
    ):
        model = make_model("llama")
        method = make_method("seer-attention", 8, weights=str(tmp_path), block=4, **options)
        with attach(model, method) as attached, pytest.raises(MethodError, match=message):
            read_alone(model, attached, row, 1)
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
