"""InfLLM-V2 against its definition, block by block."""

import math

import pytest
import torch

from nsa_models.methods import MethodError, QueryBlock, make_method, parse_method

SMALL = {"kernel": 4, "stride": 2, "block": 4, "window": 4, "dense_length": 0}


def definition(q, k, t, *, scaling, kernel, stride, block, first, window, count):
    """Keys of one query at t: q [H, d], k [H_kv, S, d]; a set for each KV head."""
    sets = []
    for group in range(len(k)):
        heads = range(group * len(q) // len(k), (group + 1) * len(q) // len(k))
        whole = [j for j in range(len(k[group])) if j * stride + kernel - 1 <= t]
        mass = dict.fromkeys(whole, 0.0)
        for head in heads:
            logits = {
                j: scaling * float(q[head] @ k[group, j * stride : j * stride + kernel].mean(0))
                for j in whole
            }
            total = sum(math.exp(x) for x in logits.values())
            for j, x in logits.items():
                mass[j] += math.exp(x) / total
        own, per = t // block, block // stride
        score = {
            b: max((mass.get(j, 0.0) for j in range(b * per - 1, b * per + per)), default=0.0)
            for b in range(own + 1)
        }
        forced = {b for b in score if b < first or own - window // block <= b}
        ranked = sorted(score, key=lambda b: (b not in forced, -score[b], b))[:count]
        sets.append({s for b in ranked for s in range(b * block, min(b * block + block, t + 1))})
    return sets


@pytest.mark.parametrize("window", [0, 4, 8])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_it_reads_what_the_definition_says(window, first):
    make = torch.Generator().manual_seed(window + first)
    q = torch.randn(2, 4, 45, 8, generator=make, dtype=torch.float64) * 2
    k = torch.randn(2, 2, 45, 8, generator=make, dtype=torch.float64)
    positions = torch.arange(45).expand(2, -1)
    method = make_method("infllm-v2", 20, **{**SMALL, "window": window, "first_blocks": first})
    block = QueryBlock(q=q, k=k, positions=positions, scaling=0.4, layer=0)
    found = method.select(block) & block.visible
    for row in range(2):
        for t in range(45):
            sets = definition(
                q[row, :, t],
                k[row],
                t,
                scaling=0.4,
                kernel=4,
                stride=2,
                block=4,
                first=first,
                window=window,
                count=5,
            )
            for head in range(4):
                assert {int(s) for s in found[row, head, t].nonzero()} == sets[head // 2]
                assert len(sets[head // 2]) == method.kv_reads(t + 1)


def test_a_query_is_dense_by_its_own_position():
    make = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 30, 8, generator=make), torch.randn(1, 1, 30, 8, generator=make)
    block = QueryBlock(q=q, k=k, positions=torch.arange(30)[None], scaling=1.0, layer=0)
    method = make_method("infllm-v2", 12, **{**SMALL, "dense_length": 20})
    counts = (method.select(block) & block.visible).sum(-1)[0]
    assert counts[:, :19].tolist() == [list(range(1, 20))] * 2, "rows of fewer than 20 tokens"
    assert counts[:, 19:].tolist() == [[method.kv_reads(t + 1) for t in range(19, 30)]] * 2
    assert max(method.kv_reads(t + 1) for t in range(19, 30)) == 12
    assert [method.index_reads(tokens) for tokens in (19, 20, 30)] == [0, 9, 14]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("infllm-v2:4096,kernel=48", "kernel must be twice the stride, 32 tokens, got 48"),
        ("infllm-v2:4096,block=40", "block must be a multiple of 16 tokens, got 40"),
        ("infllm-v2:4096,window=100", "window must be a multiple of 64 tokens, got 100"),
        ("infllm-v2:2112", "budget must be a multiple of 64 from 2176 KV tokens on"),
        ("infllm-v2:4100", "budget must be a multiple of 64 from 2176 KV tokens on"),
    ],
)
def test_what_cant_be_is_refused(text, message):
    with pytest.raises(MethodError, match=message):
        parse_method(text)


def test_the_authors_sizes_are_the_defaults():
    assert parse_method("infllm-v2:4k").label == "infllm-v2@4096"
