"""Vertical-slash prefill, both readings, against their definitions."""

from __future__ import annotations

import pytest
import torch

from nsa_models.methods import MethodError, make_method
from nsa_models.methods.vertical_slash import kernel_keys, kernel_starts

from .conftest import prompt_sets, random_row


def columns_and_offsets(
    q: torch.Tensor, k: torch.Tensor, *, vertical: int, slash: int, first: int, local: int, last: int
) -> tuple[set[int], set[int]]:
    """Of one head: q [n, d], k [n, d], logits scaled by 1/2."""
    n = len(q)
    by_column, by_offset = [0.0] * n, [0.0] * n
    for t in range(max(0, n - last), n):
        weights = (0.5 * (k[: t + 1] @ q[t])).softmax(0).tolist()
        for s, weight in enumerate(weights):
            by_column[s] += weight
            by_offset[t - s] += weight
    columns = sorted(range(n), key=lambda s: (s >= first, 0 if s < first else -by_column[s], s))
    offsets = sorted(range(n), key=lambda o: (o >= local, 0 if o < local else -by_offset[o], o))
    return set(columns[:vertical]), set(offsets[:slash])


def kernel_ranges(offsets: set[int], m: int, block: int) -> set[int]:
    """The keys that queries m .. m + block - 1 read for their diagonals, in the order of the program."""
    ends = sorted(max(m + block - o, block) for o in offsets if o < m + block)
    keys: set[int] = set()
    if not ends:
        return keys
    start, end = ends[0] - block, ends[0]
    for e in ends[1:]:
        if e > end + block:
            keys |= set(range(start, end))
            start, end = e - block, e
        elif e > end:
            end += block
    return keys | set(range(start, end))


OPTIONS = [
    {"vertical": 4, "slash": 6, "first": 1, "local": 3, "last": 7},
    {"vertical": 2, "slash": 2, "first": 2, "local": 4, "last": 100},
    {"vertical": 0, "slash": 9, "first": 0, "local": 1, "last": 1},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("block", [1, 4, 7])
def test_sets_follow_the_definition(options: dict[str, int], block: int) -> None:
    q, k = random_row(61)
    given = {key: value for key, value in options.items() if key != "slash"}
    budget = options["vertical"] + options["slash"]
    token = make_method("vertical-slash", budget, **given)
    kernel = make_method("vertical-slash", budget, reading="kernel", block=block, **given)
    both = zip(prompt_sets(token, q, k), prompt_sets(kernel, q, k), strict=True)
    for head, (tokens, kernels) in enumerate(both):
        columns, offsets = columns_and_offsets(q[0, head], k[0, head // 2], **options)
        for t in range(61):
            assert tokens[t] == {s for s in range(t + 1) if s in columns or t - s in offsets}
            ranges = kernel_ranges(offsets, t // block * block, block)
            assert kernels[t] == {s for s in range(t + 1) if s in columns or s in ranges}
            assert tokens[t] <= kernels[t]
            assert token.kv_reads_least(t + 1) <= len(tokens[t]) <= token.kv_reads(t + 1)
            assert kernel.kv_reads_least(t + 1) <= len(kernels[t]) <= kernel.kv_reads(t + 1)


def test_kernel_blocks_equal_the_program_on_any_diagonals() -> None:
    maker = torch.Generator().manual_seed(0)
    for density, block in ((0.02, 8), (0.1, 8), (0.5, 5), (0.05, 3), (0.0, 4)):
        offsets = torch.rand(3, 90, generator=maker) < density
        keys = kernel_keys(kernel_starts(offsets, block), torch.arange(90), block, 90)
        for head in range(3):
            chosen = set(offsets[head].nonzero().flatten().tolist())
            for t in range(90):
                expected = {s for s in kernel_ranges(chosen, t // block * block, block) if s < 90}
                assert set(keys[head, t].nonzero().flatten().tolist()) == expected


def test_one_diagonal_opens_the_block_that_it_crosses() -> None:
    offsets = torch.zeros(1, 192, dtype=torch.bool)
    offsets[0, 10] = True
    keys = kernel_keys(kernel_starts(offsets, 64), torch.arange(128, 192), 64, 192)
    assert all(row.nonzero().flatten().tolist() == list(range(118, 182)) for row in keys[0])


def test_authors_sizes_are_the_defaults() -> None:
    method = make_method("vertical-slash", 7096)
    assert (method.vertical, method.slash) == (1000, 6096)
    assert (method.first, method.local, method.last, method.block) == (30, 100, 64, 64)
    assert (method.kv_reads(100_000), method.kv_reads_least(100_000)) == (7096, 130)


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        (1049, {}, "budget must be at least vertical = 1000 columns and 50 diagonals"),
        (
            1000,
            {"vertical": 29},
            "vertical must be at least first = 30 columns: they are always read, got 29",
        ),
        (2000, {"local": 0}, "local must be at least 1 distance"),
        (2000, {"last": 0}, "last must be at least 1 query"),
        (2000, {"block": 0}, "block must be at least 1 token"),
        (2000, {"reading": "cuda"}, "reading must be one of token, kernel, got 'cuda'"),
    ],
)
def test_sizes_that_the_pattern_cannot_have_are_refused(
    budget: int, options: dict[str, int], message: str
) -> None:
    with pytest.raises(MethodError, match=f"vertical-slash: {message}"):
        make_method("vertical-slash", budget, **options)
