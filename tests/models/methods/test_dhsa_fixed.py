"""DHSA in fixed chunks against its definition, read in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.methods import MethodError, attach, make_method

from .conftest import as_sets, random_row, read_alone, read_sets, tokens


def taken(q: Tensor, k: Tensor, number: int, *, prompt: int, sizes: dict[str, int]) -> set[int]:
    """Tokens that query block `number` takes, before each query leaves out those behind it."""
    block, chunk, budget = sizes["block"], sizes["chunk"], sizes["budget"]
    queries = [t for t in range(number * block, (number + 1) * block) if t < prompt - sizes["tail"]]
    end = min((number + 1) * block, prompt)
    mean = sum(q[0, head, t] for t in queries for head in range(4)) / (4 * len(queries))
    scores: dict[int, float] = {}
    for start in range(0, prompt, chunk):
        members = range(start, min(start + chunk, prompt))
        key = sum(k[0, head, s] for s in members for head in range(2)) / 2
        score = float(mean @ (key / len(members)) * len(members) ** 0.5 * len(queries) ** 0.5)
        scores |= {s: score for s in members if s < end}
    if end <= budget:
        return {*range(end)}
    local = {*range(end - sizes["local"], end)}
    others = sorted((s for s in scores if s not in local), key=lambda s: (-scores[s], s))
    chosen = sorted(local | set(others[: budget - len(local)]))
    return {*range(sizes["first"]), *chosen[sizes["first"] :]}


SIZES = [
    {"budget": 14, "block": 4, "chunk": 2, "first": 3, "local": 5, "tail": 3},
    {"budget": 12, "block": 6, "chunk": 3, "first": 0, "local": 6, "tail": 0},
    {"budget": 10, "block": 4, "chunk": 4, "first": 6, "local": 4, "tail": 9},
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("prompt", [40, 41, 43, 8])
def test_sets_follow_the_definition(sizes: dict[str, int], prompt: int) -> None:
    q, k = random_row(prompt)
    method = make_method("dhsa-fixed", **sizes)
    found = read_sets(method, q, k, prompt=prompt)[0]
    for t in range(prompt):
        expected = {*range(t + 1)}
        if t < prompt - sizes["tail"]:
            expected &= taken(q, k, t // sizes["block"], prompt=prompt, sizes=sizes)
        assert as_sets(found[t]) == [expected] * 4, t
        assert method.stated_reads(t + 1, prompt=prompt, layer=0) == (len(expected),) * 2
    assert any(len(found[t][0]) > int(found[t][0].sum()) for t in found) == (prompt > 8)


def test_decode_steps_are_dense(make_model: Callable[..., PreTrainedModel]) -> None:
    model, row = make_model("llama"), tokens(40)
    method = make_method("dhsa-fixed", 12, chunk=2, block=4, first=2, local=4, tail=3)
    with attach(model, method) as attached:
        read_alone(model, attached, row, 2)
        assert [layer.sparse for layer in attached.reads.last] == [False] * 3
        assert attached.reads.decode.read == attached.reads.decode.dense


def test_the_name_says_that_the_predictor_is_absent() -> None:
    method = make_method("dhsa-fixed", 2560)
    assert "without its predictor" in method.title
    assert method.label == "dhsa-fixed@2560"
    assert not method.lm_scores


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 255}, r"budget must be at least first \+ local = 256"),
        ({"budget": 512, "chunk": 7}, "chunk must divide block = 64, got 7"),
        ({"budget": 512, "local": 63}, "local must be at least block = 64"),
        ({"budget": 512, "block": 0}, "block must be at least 1 token"),
        ({"budget": 512, "tail": -1}, "tail must be at least 0 tokens"),
    ],
)
def test_parameters_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=f"dhsa-fixed: {message}"):
        make_method("dhsa-fixed", **options)
