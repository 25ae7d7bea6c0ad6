"""InfLLM against its definition: a queue of tokens, from which first ones and blocks are taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.methods import Memories, MethodError, attach, make_method
from nsa_models.methods._placement import Placement
from nsa_models.methods._rowwise import attend_rows

from .conftest import INV_FREQ, as_sets, random_row, read_alone, read_sets, tokens, turned


def at(x: Tensor, position: float) -> Tensor:
    """One vector [8] at a position, pair by pair."""
    out = x.clone()
    for i in range(4):
        angle = position * float(INV_FREQ[i])
        a, b = float(x[i]), float(x[i + 4])
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + 4] = b * math.cos(angle) + a * math.sin(angle)
    return out


class Queue:
    """The authors' queue in plain Python; 4 heads on 2 KV heads, q and k without position."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, *, first: int, local: int, block: int, top: int, standing: int
    ) -> None:
        self.q, self.k, self.v = q[0], k[0], v[0]
        self.first, self.local, self.block, self.top, self.standing = first, local, block, top, standing
        self.begin: list[int] = []
        self.blocks: list[list[int]] = []
        self.representatives: list[Tensor] = []
        self.waiting: list[int] = []
        self.scores = [dict.fromkeys(range(q.shape[2]), 0.0) for _ in range(4)]

    def unit(self, start: int, stop: int) -> list[tuple[list[set[int]], Tensor]]:
        """Queries start..stop - 1: keys that each head reads, and outputs [4, d]."""
        chosen = self.choose(start, stop)
        self.waiting += range(start, stop)
        out = []
        for t in range(start, stop):
            near = [s for s in self.waiting if s <= t < s + self.local]
            far = [*self.begin, *chosen, *(s for s in self.waiting if s + self.local <= t)]
            made = []
            for head in range(4):
                logits = [float(at(self.q[head, t], t) @ at(self.k[head // 2, s], s)) for s in near]
                logits += [float(at(self.q[head, t], self.local - 1) @ self.k[head // 2, s]) for s in far]
                weights = (0.5 * torch.tensor(logits, dtype=torch.float64)).softmax(-1)
                made.append(weights @ self.v[head // 2, [*near, *far]])
                for s, weight in zip(near, weights.tolist(), strict=False):
                    self.scores[head][s] += weight
            out.append(([{*near, *far}] * 4, torch.stack(made)))
        self.settle()
        return out

    def choose(self, start: int, stop: int) -> list[int]:
        found: list[float] = []
        for standing in self.representatives:
            mean = [
                sum(at(self.q[head, t], self.local - 1) for t in range(start, stop)) / (stop - start)
                for head in range(4)
            ]
            found.append(sum(float(mean[head] @ standing[head]) for head in range(4)))
        order = sorted(range(len(found)), key=lambda j: (-found[j], j))[: self.top]
        return [s for j in order for s in self.blocks[j]]

    def settle(self) -> None:
        while len(self.begin) < self.first and len(self.waiting) > self.local:
            self.begin.append(self.waiting.pop(0))
        while len(self.waiting) - self.block >= self.local:
            block, self.waiting = self.waiting[: self.block], self.waiting[self.block :]
            self.blocks.append(block)
            means = []
            for head in range(4):
                order = sorted(block, key=lambda s: (-self.scores[head][s], s))[: self.standing]
                means.append(self.k[head // 2, order].mean(0))
            self.representatives.append(torch.stack(means))


SIZES = [
    {"first": 1, "local": 6, "block": 2, "top": 3, "standing": 1},
    {"first": 0, "local": 4, "block": 3, "top": 2, "standing": 2},
    {"first": 5, "local": 8, "block": 4, "top": 1, "standing": 4},
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("prompt", "unit"), [(33, 4), (29, 3), (3, 4), (1, 1)])
def test_sets_and_outputs_follow_the_definition(sizes: dict[str, int], prompt: int, unit: int) -> None:
    total = prompt + 8
    q, k = random_row(total)
    v = random_row(total, seed=7)[1]
    queue = Queue(q, k, v, **sizes)
    expected: list[tuple[list[set[int]], Tensor]] = []
    for start in range(0, prompt - 1, unit):
        expected += queue.unit(start, min(start + unit, prompt - 1))
    for t in range(prompt - 1, total):  # the prompt's last token is a unit of its own
        expected += queue.unit(t, t + 1)
    method = make_method(
        "infllm",
        sizes["first"] + sizes["local"] + sizes["top"] * sizes["block"],
        first=sizes["first"],
        local=sizes["local"],
        block=sizes["block"],
        representatives=sizes["standing"],
        unit=unit,
    )
    positions = torch.arange(total)[None]
    rotated_q, rotated_k = turned(q, positions), turned(k, positions)
    found = read_sets(method, rotated_q, rotated_k, prompt=prompt)[0]
    for t, (sets, _) in enumerate(expected):
        assert as_sets(found[t]) == sets, t
        assert method.stated_reads(t + 1, prompt=prompt, layer=0) == (len(sets[0]),) * 2
    memories = Memories.fresh(1)
    for start, stop, phase in [(0, prompt, "prefill")] + [(t, t + 1, "decode") for t in range(prompt, total)]:
        place = Placement.bottom_right(1, stop - start, stop, q.device)
        given: Any = {"scaling": 0.5, "layer": 0, "rotate": turned, "phase": phase}
        out, _ = attend_rows(
            method,
            rotated_q[:, :, start:stop],
            rotated_k[:, :, :stop],
            v[:, :, :stop],
            place,
            memories,
            **given,
        )
        for t in range(start, stop):
            torch.testing.assert_close(out[0, :, t - start], expected[t][1], rtol=1e-8, atol=1e-8)


def test_blocks_of_a_small_case() -> None:
    method = make_method("infllm", 13, first=1, local=4, block=2, representatives=1, unit=1)
    assert method._made(13) == (1, 4)  # key 0 first, blocks (1, 2) (3, 4) (5, 6) (7, 8)
    q, k = random_row(14)
    assert (
        as_sets(read_sets(method, q, k, prompt=13)[0][13]) == [{*range(14)}] * 4
    )  # 9 waits, 10-13 are local
    fewer = make_method("infllm", 7, first=1, local=4, block=2, representatives=1, unit=1)
    for keys in as_sets(read_sets(fewer, q, k, prompt=13)[0][13]):
        assert keys >= {0, 9, 10, 11, 12, 13}
        assert len(keys) == 8  # and one block


@pytest.mark.parametrize("kind", ["llama", "qwen3", "decoder"])
def test_dense_while_everything_is_local_and_not_beyond(
    make_model: Callable[..., PreTrainedModel], kind: str
) -> None:
    model, row = make_model(kind), tokens(40)
    dense = read_alone(model, None, row, 5)
    method = make_method("infllm", 400, first=2, local=24, block=4, unit=8)  # all blocks are read
    with attach(model, method) as attached:
        sparse = read_alone(model, attached, row, 5)
    torch.testing.assert_close(sparse[:24], dense[:24], rtol=1e-9, atol=1e-9)
    assert (sparse[24] - dense[24]).abs().max() > 1e-4  # a far token stands nearer than it is


def test_far_tokens_stand_at_one_distance(make_model: Callable[..., PreTrainedModel]) -> None:
    """One layer: a query's far keys, in any order, give the same."""
    model = make_model("llama", num_hidden_layers=1)
    row = tokens(30)
    other = torch.cat([row[:12].flip(0), row[12:]])
    method = make_method("infllm", 400, first=1, local=8, block=2, representatives=1, unit=4)
    with attach(model, method) as attached:
        one, two = (read_alone(model, attached, ids, 4) for ids in (row, other))
    dense = [read_alone(model, None, ids, 4)[-1] for ids in (row, other)]
    torch.testing.assert_close(one[-1], two[-1], atol=1e-5, rtol=1e-5)  # cos and sin of models are float32
    assert (dense[0] - dense[1]).abs().max() > 1e-3


def test_what_nsa_compares_with() -> None:
    method = make_method("infllm", 2560)
    assert (method.first, method.local, method.block, method.blocks) == (128, 512, 128, 15)
    assert {method.kv_reads(tokens) for tokens in range(20_000, 20_128)} == {*range(2561, 2689)}
    assert method.index_reads(640) == 0
    assert method.index_reads(20_001) == (20_000 - 640) // 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 767}, r"budget must be at least first \+ local \+ block = 768 KV tokens"),
        ({"budget": 2560, "unit": 513}, "unit must be at most local = 512"),
        ({"budget": 2560, "representatives": 129}, "representatives must be at most block = 128"),
        ({"budget": 2560, "block": 0}, "block must be at least 1, got 0"),
        ({"budget": 2560, "first": -1}, "first must be at least 0 tokens"),
    ],
)
def test_parameters_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(MethodError, match=f"infllm: {message}"):
        make_method("infllm", **options)
