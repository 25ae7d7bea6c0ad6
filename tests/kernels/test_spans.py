"""Attention in parts over keys in several places against one softmax over all of them."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import spans
from nsa_kernels.spans import Merger, Part, SpanTable, attend, attend_pieces, attend_plainly, decode_spans
from nsa_kernels.triton.spans import merge_into

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TYPES = [torch.float32, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float32]
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def drawn(*shape, dtype=torch.float32, seed=0):
    pick = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=pick).to(DEVICE, dtype)


def heads_of(tokens, groups, heads, width, value_width=None, dtype=torch.float32, seed=0):
    q = drawn(tokens, heads, width, dtype=dtype, seed=seed)
    k = drawn(tokens, groups, width, dtype=dtype, seed=seed + 1)
    v = drawn(tokens, groups, value_width or width, dtype=dtype, seed=seed + 2)
    return q, k, v


def softmax_over(q, k, v, mask=None):
    """One query head after the other, in float64."""
    out = torch.empty(*q.shape[:2], v.shape[-1], dtype=torch.float64, device=q.device)
    group = q.shape[1] // k.shape[1]
    for head in range(q.shape[1]):
        scores = q[:, head].double() @ k[:, head // group].double().T / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        out[:, head] = scores.softmax(-1) @ v[:, head // group].double()
    return out


def same(found, expected, dtype=torch.float32):
    torch.testing.assert_close(found.double(), expected, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("width", [(64, 64), (48, 32), (24, 24)])
@pytest.mark.parametrize("causal", [True, False])
def test_a_part_of_all_keys_is_attention(dtype, width, causal, monkeypatch):
    monkeypatch.setattr(spans, "_PLAIN_CELLS", 500)
    q, k, v = heads_of(37, 2, 6, *width, dtype=dtype)
    mask = torch.ones(37, 37, dtype=torch.bool, device=DEVICE).tril() if causal else None
    with torch.no_grad():
        same(attend(q, k, v, causal=causal).out, softmax_over(q, k, v, mask), dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_parts_merged_are_the_whole(dtype):
    q, k, v = heads_of(50, 2, 4, 32, dtype=dtype)
    with torch.no_grad():
        merged = Merger(attend(q[30:], k[:11], v[:11], causal=False))
        merged.add(attend(q[30:], k[30:], v[30:], causal=True), slice(0, 20))
        # The rest of the keys for some queries first, in disorder, then for the others.
        some = torch.tensor([7, 3, 19, 0], device=DEVICE)
        others = torch.tensor([n for n in range(20) if n not in (7, 3, 19, 0)], device=DEVICE)
        for numbers in (some, others):
            merged.add(attend(q[30:][numbers], k[11:30], v[11:30], causal=False), numbers)
    mask = torch.ones(50, 50, dtype=torch.bool, device=DEVICE).tril()[30:]
    same(merged.out, softmax_over(q[30:], k, v, mask), dtype)


def test_a_part_without_keys_changes_nothing():
    q, k, v = heads_of(9, 1, 2, 16)
    merged = Merger(attend(q, k, v, causal=True))
    before = merged.out.clone()
    empty = torch.full((2, 9), -torch.inf, device=DEVICE)
    merged.add(Part(drawn(9, 2, 16, seed=5), empty), slice(0, 9))
    assert torch.equal(merged.out, before)


@pytest.mark.parametrize("where", ["slice", "numbers"])
def test_the_merging_kernel_is_its_plain_twin(where):
    out, lse = drawn(40, 3, 24), drawn(3, 40, seed=1) * 4
    part, part_lse = drawn(12, 3, 24, seed=2), drawn(12, 3, seed=3).T * 4
    lse[0, 5] = part_lse[0, 0] = lse[1, 6] = part_lse[2, 3] = -torch.inf
    numbers = torch.randperm(40, generator=torch.Generator().manual_seed(4))[:12].to(DEVICE)
    place = slice(5, 17) if where == "slice" else numbers
    expected = (out.clone(), lse.clone())
    spans.merge_plainly(*expected, part, part_lse, place)
    merge_into(out, lse, part, part_lse, place)
    torch.testing.assert_close(lse, expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_pieces_see_nothing_of_one_another(dtype, causal):
    queries = [5, 1, 9, 3]
    keys = queries if causal else [2, 7, 1, 4]
    q = drawn(18, 4, 32, dtype=dtype)
    k, v = drawn(sum(keys), 2, 32, dtype=dtype, seed=1), drawn(sum(keys), 2, 32, dtype=dtype, seed=2)
    with torch.no_grad():
        found = attend_pieces(q, k, v, queries=queries, keys=keys, causal=causal)
    begin = key = 0
    for size, width in zip(queries, keys, strict=True):
        part = [q[begin : begin + size], k[key : key + width], v[key : key + width]]
        alone = attend_plainly(*part, causal=causal)
        same(found.out[begin : begin + size], alone.out.double(), dtype)
        torch.testing.assert_close(found.lse[:, begin : begin + size], alone.lse, rtol=1e-2, atol=1e-2)
        begin, key = begin + size, key + width


def table_of(rows, tails, tiles):
    """Rows of (keys, values) parts, and the length of each tail, which is the last part: with room behind."""
    k = torch.zeros(len(rows), tiles, dtype=torch.int64)
    v, sizes = torch.zeros_like(k), torch.zeros(len(rows), tiles, dtype=torch.int32)
    firsts = []
    for row, parts in enumerate(rows):
        at = 0
        for number, (keys, values) in enumerate(parts):
            if number == len(parts) - 1:
                firsts.append(at)
            for begin in range(0, keys.shape[0], spans.TILE):
                k[row, at] = keys[begin:].data_ptr()
                v[row, at] = values[begin:].data_ptr()
                sizes[row, at] = min(spans.TILE, keys.shape[0] - begin)
                at += 1
        if not parts:
            firsts.append(0)
    return SpanTable(
        k=k.to(DEVICE),
        v=v.to(DEVICE),
        sizes=sizes.to(DEVICE),
        tails=torch.tensor(firsts, dtype=torch.int32, device=DEVICE),
        lengths=torch.tensor(tails, dtype=torch.int32, device=DEVICE),
    )


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("heads", "groups", "width", "value_width"), [(6, 2, 64, 64), (4, 4, 24, 16)])
def test_decode_reads_shared_parts_and_tails(dtype, heads, groups, width, value_width):
    def keys(tokens, seed):
        _, k, v = heads_of(tokens, groups, heads, width, value_width, dtype=dtype, seed=seed)
        return k, v

    shared, other = keys(150, 1), keys(70, 4)
    tails = [keys(200, 7), keys(200, 10), keys(200, 13)]  # room for more than what is there
    part = (shared[0][:90], shared[1][:90])
    rows = [[shared, tails[0]], [part, other, tails[1]], [], [tails[2]]]
    lengths = [3, 130, 0, 1]
    q = drawn(4, heads, width, dtype=dtype, seed=20)
    table = table_of(rows, lengths, 12)
    with torch.no_grad():
        found = decode_spans(q, table, kv_heads=groups, v_width=value_width)
    assert torch.equal(found[2], torch.zeros_like(found[2]))
    for row in (0, 1, 3):
        k, v = zip(*[*rows[row][:-1], tuple(x[: lengths[row]] for x in rows[row][-1])], strict=True)
        same(found[row : row + 1], softmax_over(q[row : row + 1], torch.cat(k), torch.cat(v)), dtype)
