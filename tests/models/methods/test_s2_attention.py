"""S2-Attention's pattern against its definition."""

from __future__ import annotations

import pytest

from nsa_models.methods import MethodError, make_method

from .conftest import prompt_sets, random_row


def by_definition(t: int, shift: int, local: int, stride: int, block: int) -> set[int]:
    own = t // block
    blocks = {j for j in range(own + 1) if own - j < local or (j + shift) % stride == 0}
    return {s for s in range(t + 1) if s // block in blocks}


# Query heads, KV heads, stride: as many heads as the stride and more move by one block, fewer by several.
@pytest.mark.parametrize(("heads", "groups", "stride", "step"), [(4, 2, 4, 1), (4, 2, 9, 2), (2, 2, 7, 3)])
def test_sets_follow_the_definition(heads: int, groups: int, stride: int, step: int) -> None:
    method = make_method("s2-attention", local=3, stride=stride, block=2)
    found = prompt_sets(method, *random_row(61, heads=heads, groups=groups))
    for head, sets in enumerate(found):
        shift = head // (heads // groups) * step
        assert sets == [by_definition(t, shift, 3, stride, 2) for t in range(61)]


def test_heads_cover_the_context_together() -> None:
    method = make_method("s2-attention", local=1, stride=4, block=2)
    found = prompt_sets(method, *random_row(60, heads=4, groups=4))
    assert set().union(*(sets[-1] for sets in found)) == set(range(60))


def test_authors_example_reads_an_eighth_of_the_older_blocks() -> None:
    method = make_method("s2-attention")
    assert (method.local, method.stride, method.block) == (32, 8, 64)
    # 512 blocks: 32 local ones, and 60 of the 480 before them.
    assert method.kv_reads(32_768) == method.kv_reads_least(32_768) == 92 * 64
    assert method.kv_reads(32_768 - 64) - method.kv_reads_least(32_768 - 64) == 64


@pytest.mark.parametrize("option", ["local", "stride", "block"])
def test_nothing_to_read_is_refused(option: str) -> None:
    with pytest.raises(MethodError, match=f"s2-attention: {option} must be at least 1 .*, got 0"):
        make_method("s2-attention", **{option: 0})
