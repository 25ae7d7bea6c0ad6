"""NOSA against its definition, and a checkpoint of its format read without its code."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from nsa_models import import_notes, load_model
from nsa_models.methods import MethodError, QueryBlock, attach, make_method

from .conftest import MODELS, read_alone, tokens

SMALL = {"by_query": 12, "kernel": 4, "stride": 2, "block": 4, "window": 4}


def definition(q, k, bias, t, *, scaling, count, by_query, first=1, window=4):
    """Keys of one query at t with their shares, for each head; q [H, d], k [H_kv, S, d], bias [H_kv, S]."""
    found = []
    for group in range(len(k)):
        heads = range(group * len(q) // len(k), (group + 1) * len(q) // len(k))
        whole = [j for j in range(len(k[group])) if 2 * j + 3 <= t]
        mass = dict.fromkeys(whole, 0.0)
        for head in heads:
            logits = {j: scaling * float(q[head] @ k[group, 2 * j : 2 * j + 4].mean(0)) for j in whole}
            total = sum(math.exp(x) for x in logits.values())
            for j, x in logits.items():
                mass[j] += math.exp(x) / total
        own = t // 4
        near = {b: [j for j in whole if 2 * b - 1 <= j <= 2 * b + 1] for b in range(own + 1)}
        score = {b: max((mass[j] for j in near[b]), default=0.0) for b in near}
        forced = {b for b in near if b < first or own - window // 4 <= b}
        queried = sorted(near, key=lambda b: (b not in forced, -score[b], b))[:by_query]
        pooled = {
            b: max((float(bias[group, 2 * j : 2 * j + 4].mean()) for j in near[b]), default=-math.inf)
            for b in near
        }
        blocks = sorted(near, key=lambda b: (b not in queried, -pooled[b], b))[:count]
        keys = sorted(s for b in blocks for s in range(4 * b, min(4 * b + 4, t + 1)))
        for head in heads:
            logits = [scaling * float(q[head] @ k[group, s]) + float(bias[group, s]) for s in keys]
            most = max(logits)
            shares = [math.exp(x - most) for x in logits]
            found.append({s: share / sum(shares) for s, share in zip(keys, shares, strict=True)})
    return found


@pytest.fixture
def weights(tmp_path):
    """Weights with a bias that moves choices and logits."""

    def write(*, gate=True, offset=False, layers=3):
        make, made = torch.Generator().manual_seed(5), {}
        for layer in range(layers):
            here = f"model.layers.{layer}.self_attn."
            made[here + "delta.weight"] = torch.randn(2, 16, generator=make)
            if gate:
                made[here + "A"] = torch.randn(2, generator=make)
            if offset:
                made[here + "delta.bias"] = torch.randn(2, generator=make)
        save_file(made, tmp_path / "gates.safetensors")
        return str(tmp_path / "gates.safetensors"), made

    return write


@pytest.mark.parametrize("kind", [{}, {"gate": False}, {"offset": True}], ids=["A softplus", "plain", "bias"])
def test_it_reads_and_weighs_what_the_definition_says(weights, kind):
    place, made = weights(**kind)
    make = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 45, 8, generator=make, dtype=torch.float64) * 2
    k, v = torch.randn(2, 1, 2, 45, 8, generator=make, dtype=torch.float64)
    method = make_method("nosa", 20, weights=place, **SMALL)
    block = QueryBlock(q=q, k=k, positions=torch.arange(45)[None], scaling=0.4, layer=1, v=v)
    here = "model.layers.1.self_attn."
    flat = v[0].transpose(0, 1).reshape(45, 16)
    bias = flat @ made[here + "delta.weight"].double().T
    if kind.get("offset"):
        bias = bias + made[here + "delta.bias"].double()
    if kind.get("gate", True):
        bias = made[here + "A"].double() * torch.log1p(torch.exp(bias))
    keep = method.select(block) & block.visible
    shares = method.logits(block).masked_fill(~keep, -math.inf).softmax(-1)
    for t in range(45):
        expected = definition(q[0, :, t], k[0], bias.T, t, scaling=0.4, count=5, by_query=3)
        for head in range(4):
            assert {int(s) for s in keep[0, head, t].nonzero()} == set(expected[head])
            assert len(expected[head]) == method.kv_reads(t + 1)
            for s, share in expected[head].items():
                assert float(shares[0, head, t, s]) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("kind", list(MODELS))
def test_pieces_and_steps_are_one_prompt(kind, make_model, weights):
    model, row = make_model(kind), tokens(40)
    method = make_method("nosa", 16, weights=weights()[0], **SMALL)
    dense = read_alone(model, None, row, 0)
    with attach(model, method) as attached:
        whole = read_alone(model, attached, row, 0)
        torch.testing.assert_close(read_alone(model, attached, row, 25), whole)
    assert float((whole - dense)[:8].abs().max()) > 1e-3, "a bias before anything is left out"
    torch.testing.assert_close(read_alone(model, None, row, 0), dense)


@pytest.fixture
def checkpoint(tmp_path, make_model):
    """A Llama with `delta` and `A` in its file, and code of its own in its config."""
    model = make_model("llama").float()
    model.save_pretrained(tmp_path / "nosa")
    file = tmp_path / "nosa" / "model.safetensors"
    made = load_file(file)
    for layer in range(3):
        made[f"model.layers.{layer}.self_attn.delta.weight"] = torch.randn(2, 16)
        made[f"model.layers.{layer}.self_attn.A"] = torch.randn(2)
    save_file(made, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "nosa" / "config.json").read_text())
    config |= {
        "architectures": ["SparseLlamaForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_llama_nosa.SparseLlamaForCausalLM"},
    }
    (tmp_path / "nosa" / "config.json").write_text(json.dumps(config))
    return str(tmp_path / "nosa")


@torch.no_grad()
def test_a_checkpoint_is_read_without_its_code_and_says_what_is_left_unread(checkpoint):
    model = load_model(checkpoint, device="cpu").double()
    assert type(model).__name__ == "LlamaForCausalLM"
    [note] = import_notes(checkpoint)
    assert f"nosa:4096,weights={checkpoint}" in note
    row = tokens(40)[None]
    dense = model(row).logits
    with attach(model, make_method("nosa", 16, weights=checkpoint, **SMALL)):
        assert float((model(row).logits - dense).abs().max()) > 1e-3
        half = model.to(torch.bfloat16)(row).logits
    assert half.isfinite().all()


def test_what_a_response_depends_on_is_the_weights_and_not_their_place(weights, tmp_path):
    place, made = weights()
    one = make_method("nosa", 16, weights=place, **SMALL)
    (tmp_path / "other").mkdir()
    save_file(made | {"lm_head.weight": torch.zeros(3)}, tmp_path / "other" / "model.safetensors")
    moved = make_method("nosa", 16, weights=str(tmp_path / "other"), **SMALL)
    assert moved.describe() == one.describe()
    assert moved.label == one.label
    assert place not in json.dumps(one.describe())
    made["model.layers.0.self_attn.A"][0] += 1
    save_file(made, place)
    assert make_method("nosa", 16, weights=place, **SMALL).describe() != moved.describe()


def test_what_cant_be_is_refused(weights, tmp_path, make_model):
    place = weights(layers=2)[0]
    for options, message in (
        ({}, "weights must name the folder"),
        ({"weights": str(tmp_path / "none")}, "weights must be a safetensors file or a folder of them, got"),
        ({"weights": place, "by_query": 100}, "by_query must be a multiple of 64 from 1152 KV tokens on"),
        ({"weights": place, "by_query": 8192}, "budget must be a multiple of 64 from by_query = 8192 on"),
    ):
        with pytest.raises(MethodError, match=message):
            make_method("nosa", 4096, **options)
    save_file({"lm_head.weight": torch.zeros(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(MethodError, match=r"must hold tensors named like .self_attn.delta. or .self_attn.A,"):
        make_method("nosa", 4096, weights=str(tmp_path / "plain.safetensors"))
    model = make_model("llama")
    with (
        attach(model, make_method("nosa", 16, weights=place, **SMALL)),
        pytest.raises(MethodError, match=r"delta.weight \[2, 16\] for layer 2 in .*, got none"),
    ):
        model(tokens(5)[None])
