"""AnchorAttention against its definition."""

from __future__ import annotations

import pytest
import torch

from nsa_models.methods import MethodError, make_method

from .conftest import prompt_sets, random_row


def sets_by_definition(
    q: torch.Tensor, k: torch.Tensor, *, theta: float, block: int, step: int
) -> list[set[int]]:
    """Of one head: q [n, d], k [n, d], logits scaled by 1/2."""
    n, stretch = len(q), block * step
    always = [{s for s in range(t + 1) if s < stretch or s >= t // stretch * stretch} for t in range(n)]
    anchor = [max(0.5 * float(q[t] @ k[s]) for s in always[t]) for t in range(n)]
    found = []
    for begin in range(0, n, stretch):
        older = set()
        for at in range(begin, min(begin + stretch, n), block):
            rows = range(at, min(at + block, n))
            mean = q[list(rows)].mean(0)
            pooled = sum(anchor[t] for t in rows) / len(rows)
            for s in range(stretch, begin):
                if 0.5 * float(mean @ k[s]) + theta >= pooled:
                    older.add(s)
        found += [always[t] | older for t in range(begin, min(begin + stretch, n))]
    return found


@pytest.mark.parametrize(("block", "step"), [(2, 3), (4, 1), (3, 4), (50, 2)])
@pytest.mark.parametrize("theta", [0.0, 1.5])
def test_sets_follow_the_definition(block: int, step: int, theta: float) -> None:
    q, k = random_row(47)
    method = make_method("anchor-attention", theta=theta, block=block, step=step)
    for head, sets in enumerate(prompt_sets(method, q, k)):
        expected = sets_by_definition(q[0, head], k[0, head // 2], theta=theta, block=block, step=step)
        assert sets == expected
        assert all(method.kv_reads_least(t + 1) <= len(keys) for t, keys in enumerate(sets))


def test_more_room_below_the_anchor_reads_more() -> None:
    q, k = random_row(47)
    read = []
    for theta in (-9.0, 0.0, 1.0, 2.0, 9.0):
        method = make_method("anchor-attention", theta=theta, block=2, step=2)
        read.append(sum(len(keys) for head in prompt_sets(method, q, k) for keys in head))
    least = 4 * sum(method.kv_reads_least(t + 1) for t in range(47))
    assert read == sorted(read)
    assert (read[0], read[-1]) == (least, 4 * 47 * 48 // 2)


def test_authors_stretch_is_the_default() -> None:
    method = make_method("anchor-attention")
    assert (method.theta, method.stretch) == (12.0, 2048)
    assert method.kv_reads_least(8192) == 4096
    for option in ("block", "step"):
        with pytest.raises(MethodError, match=f"anchor-attention: {option} must be at least 1"):
            make_method("anchor-attention", **{option: 0})
