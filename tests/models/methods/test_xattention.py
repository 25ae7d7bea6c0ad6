"""XAttention against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from nsa_models.methods import MethodError, PromptRow, make_method
from nsa_models.methods import xattention as module
from nsa_models.methods.xattention import choose, masses

from .conftest import prompt_sets, random_row


def mass_by_definition(q: torch.Tensor, k: torch.Tensor, stride: int, block: int) -> list[list[float]]:
    """Of one head: q [n, d], k [n, d], logits scaled by 1/2; tokens behind the prompt are zeros."""
    rows, per_block = math.ceil(len(q) / stride), block // stride
    blocks = math.ceil(rows / per_block)
    found = [[0.0] * blocks for _ in range(blocks)]
    for a in range(rows):
        logits = []
        for b in range(a + 1):
            pairs = [(a * stride + stride - 1 - p, b * stride + p) for p in range(stride)]
            product = sum(float(q[t] @ k[s]) for t, s in pairs if t < len(q) and s < len(k))
            logits.append(0.5 * product / stride)
        for b, weight in enumerate(torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()):
            found[a // per_block][b // per_block] += weight
    return found


def blocks_by_definition(row: list[float], i: int, tau: float) -> set[int]:
    chosen = {0, i}
    read = sum(row[j] for j in chosen)
    for j in sorted(set(range(i + 1)) - chosen, key=lambda j: (-row[j], j)):
        if read >= tau * sum(row):
            break
        chosen.add(j)
        read += row[j]
    return chosen


@pytest.mark.parametrize(("stride", "block"), [(2, 4), (3, 9), (1, 2), (4, 4)])
@pytest.mark.parametrize("tau", [0.2, 0.7, 1.1])
def test_sets_follow_the_definition(stride: int, block: int, tau: float) -> None:
    q, k = random_row(43)
    method = make_method("xattention", tau=tau, stride=stride, block=block)
    for head, sets in enumerate(prompt_sets(method, q, k)):
        mass = mass_by_definition(q[0, head], k[0, head // 2], stride, block)
        for t, keys in enumerate(sets):
            i = t // block
            assert keys == {s for s in range(t + 1) if s // block in blocks_by_definition(mass[i], i, tau)}
            assert method.kv_reads_least(t + 1) <= len(keys)


def test_masses_sum_to_the_strides_of_a_block_however_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = random_row(43)
    row = PromptRow(q=q[0], k=k[0], scaling=0.5, layer=0)
    whole = torch.cat(list(masses(row, 2, 2)), 1)
    torch.testing.assert_close(whole.sum(-1)[:, :-1], torch.full((4, 10), 2.0, dtype=torch.float64))
    monkeypatch.setattr(module, "_CELLS", 1)
    torch.testing.assert_close(torch.cat(list(masses(row, 2, 2)), 1), whole)


def test_blocks_of_a_small_case() -> None:
    mass = torch.zeros(1, 4, 4)
    mass[0, 3] = torch.tensor([0.2, 0.6, 0.3, 0.9])
    assert choose(mass, 0.9)[0, 3].tolist() == [True, True, True, True]
    assert choose(mass, 0.8)[0, 3].tolist() == [True, True, False, True]


def test_blocks_without_mass_are_read_only_above_one() -> None:
    mass = torch.zeros(1, 3, 3)
    mass[0, 2] = torch.tensor([1.0, 0.0, 1.0])
    assert choose(mass, 1.0)[0, 2].tolist() == [True, False, True]
    assert choose(mass, 1.1)[0, 2].tolist() == [True, True, True]


def test_options_that_make_no_blocks_are_refused() -> None:
    method = make_method("xattention")
    assert (method.tau, method.stride, method.block) == (0.9, 16, 128)
    for options, message in (
        ({"tau": 0}, "tau must be above 0, got 0.0"),
        ({"stride": 0}, "stride must be at least 1 token"),
        ({"stride": 48}, "block must be a multiple of stride = 48 tokens, got 128"),
    ):
        with pytest.raises(MethodError, match=f"xattention: {message}"):
            make_method("xattention", **options)
