"""Attention by lists of blocks: the kernels against their plain twins, the twins against one softmax."""

import importlib
import os
from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels.ahead import rehearsal
from nsa_kernels.blocks import BlockLists, PageLists, block_attention, page_decode
from nsa_kernels.spans import Merger, Part

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])
CLOSE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
NAN = float("nan")


def drawn(*shape, dtype=torch.float32, seed=0):
    pick = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=pick).to(DEVICE, dtype)


def heads_of(queries, keys, *, batch=2, kv_heads=2, group=2, width=16, value_width=None, dtype=torch.float32):
    q = drawn(batch, queries, kv_heads * group, width, dtype=dtype)
    k = drawn(batch, keys, kv_heads, width, dtype=dtype, seed=1)
    v = drawn(batch, keys, kv_heads, value_width or width, dtype=dtype, seed=2)
    return q, k, v


def random_mask(*shape, density=0.5, seed=3):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < density).to(DEVICE)


def lists_for(queries, keys, listed, *, batch=2, query_block=16, key_block=16, density=0.5, seed=3):
    tiles, blocks = -(-queries // query_block), -(-keys // key_block)
    mask = random_mask(batch, listed, tiles, blocks, density=density, seed=seed)
    return BlockLists.from_mask(mask, query_block=query_block, key_block=key_block)


def both(q, k, v, lists, **given):
    """The twin's result in float32, held to the kernel's."""
    expected = block_attention(q.float(), k.float(), v.float(), lists, backend="torch", **given)
    found = block_attention(q, k, v, lists, backend="triton", **given)
    close = CLOSE[q.dtype]
    torch.testing.assert_close(found.out.float(), expected.out, rtol=close, atol=close)
    torch.testing.assert_close(found.lse, expected.lse, rtol=close, atol=close)
    return found


def one_softmax(q, k, v, keep):
    """keep [B, H, N, S]; one head after the other, in float64."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.float64, device=q.device)
    for head in range(q.shape[2]):
        own = head // (q.shape[2] // k.shape[2])
        scores = q[:, :, head].double() @ k[:, :, own].double().transpose(1, 2) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~keep[:, head], -torch.inf).softmax(-1).nan_to_num(0.0)
        out[:, :, head] = weights @ v[:, :, own].double()
    return out


@pytest.mark.parametrize("listed", ["query heads", "KV heads", "all"])
@pytest.mark.parametrize("group", [1, 4, 8])
def test_a_tile_reads_its_list_and_nothing_else(listed, group):
    # Rows of the batch are another test's where there are many heads: programs are slow to interpret.
    batch = 2 if group == 1 else 1
    q, k, v = heads_of(53, 53, batch=batch, group=group)
    count = {"query heads": 2 * group, "KV heads": 2, "all": 1}[listed]
    lists = lists_for(53, 53, count, batch=batch)
    found = both(q, k, v, lists)
    keep = (
        random_mask(batch, count, 4, 4).repeat_interleave(16, 2)[:, :, :53].repeat_interleave(16, 3)[..., :53]
    )
    keep = keep.repeat_interleave(2 * group // count, 1)
    keep = keep & torch.ones(53, 53, dtype=torch.bool, device=DEVICE).tril()
    expected = one_softmax(q, k, v, keep)
    torch.testing.assert_close(found.out.double(), expected, rtol=2e-5, atol=2e-5)
    assert not found.out[~keep.any(-1).transpose(1, 2)].any()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("width", "value_width"), [(64, 64), (128, 128), (32, 64)])
def test_heads_of_any_width(dtype, width, value_width):
    q, k, v = heads_of(40, 40, batch=1, kv_heads=1, width=width, value_width=value_width, dtype=dtype)
    both(q, k, v, lists_for(40, 40, 2, batch=1, key_block=16))


@pytest.mark.parametrize(("query_block", "key_block"), [(16, 64), (64, 16), (128, 32), (128, 128), (64, 64)])
def test_tiles_and_blocks_of_any_size(query_block, key_block):
    q, k, v = heads_of(150, 150, batch=1, kv_heads=1)
    both(q, k, v, lists_for(150, 150, 1, batch=1, query_block=query_block, key_block=key_block, density=0.7))


def test_heads_that_share_a_list_share_a_tile(monkeypatch):
    packs = []
    prefill_module = importlib.import_module("nsa_kernels.triton.blocks.prefill")
    plain = prefill_module.launch

    def spied(kernel, grid):
        return lambda *given, **constants: (
            packs.append(constants["PACK"]),
            plain(kernel, grid)(*given, **constants),
        )

    monkeypatch.setattr(prefill_module, "launch", spied)
    for listed, group, pack in ((8, 8, 1), (1, 8, 4), (1, 6, 2)):
        q, k, v = heads_of(20, 20, batch=1, kv_heads=1, group=group)
        both(q, k, v, lists_for(20, 20, listed, batch=1))
        assert packs.pop() == pack


@pytest.mark.parametrize("listed", [1, 4])
def test_rows_of_unequal_length_that_continue_a_cache(listed):
    """Row 0 from token 17 on, row 1 from 3 on; what stands behind a row is NaN and changes nothing."""
    q, k, v = heads_of(37, 60)
    lengths, start = torch.tensor([54, 21], device=DEVICE), torch.tensor([17, 3], device=DEVICE)
    lists = lists_for(37, 60, listed)
    for row, length in enumerate([54, 21]):
        k[row, length:] = v[row, length:] = NAN
    found = both(q, k, v, lists, start=start, lengths=lengths)
    assert not found.out[1, 18:].any()
    assert found.lse[1, 18:].isinf().all()
    assert found.out[1, :18].any()


def test_a_chunk_gives_what_the_whole_prompt_gives():
    q, k, v = heads_of(64, 64, batch=1)
    lists = lists_for(64, 64, 4, batch=1)
    whole = both(q, k, v, lists)
    late = replace(lists, firsts=lists.firsts[:, :, 2:], counts=lists.counts[:, :, 2:])
    chunk = both(q[:, 32:], k, v, late, start=32)
    assert torch.equal(chunk.out, whole.out[:, 32:])


def test_all_blocks_are_dense_attention():
    q, k, v = heads_of(70, 70)
    found = both(q, k, v, lists_for(70, 70, 1, density=2))
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(found.out, dense.transpose(1, 2), rtol=2e-5, atol=2e-5)


def test_without_a_causal_mask_lists_are_read_to_the_row_s_end():
    q, k, v = heads_of(40, 75)
    lengths = torch.tensor([75, 61], device=DEVICE)
    k[1, 61:] = v[1, 61:] = NAN
    both(q, k, v, lists_for(40, 75, 4, density=0.7), lengths=lengths, causal=False)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_or_a_document_bounds_what_is_seen_from_below(causal):
    q, k, v = heads_of(90, 90)
    documents = torch.tensor([0, 20, 21, 70], device=DEVICE)
    own = documents[torch.searchsorted(documents, torch.arange(90, device=DEVICE), right=True) - 1]
    window = torch.arange(90, device=DEVICE) - 24
    low = torch.stack([own, window]).int()
    found = both(q, k, v, lists_for(90, 90, 1, density=2), low=low, causal=causal)
    keys = torch.arange(90, device=DEVICE)
    keep = keys >= low[:, :, None]
    if causal:
        keep = keep & (keys <= keys[:, None])
    expected = one_softmax(q, k, v, keep[:, None].expand(-1, 4, -1, -1))
    torch.testing.assert_close(found.out.double(), expected, rtol=2e-5, atol=2e-5)


def by_hand(firsts, columns=None, **sizes):
    """Lists [1, 1, T, ...] of Python lists."""

    def padded(lists):
        width = max(1, *map(len, lists))
        rows = [[*x, *[7] * (width - len(x))] for x in lists]  # what is behind a count must not matter
        counts = torch.tensor([[list(map(len, lists))]], dtype=torch.int32, device=DEVICE)
        return torch.tensor([[rows]], dtype=torch.int32, device=DEVICE), counts

    made = dict(zip(("firsts", "counts"), padded(firsts), strict=True))
    if columns is not None:
        made |= dict(zip(("columns", "column_counts"), padded(columns), strict=True))
    return BlockLists(**made, **{"query_block": 16, "key_block": 16, **sizes})


def test_blocks_begin_anywhere_and_single_keys_stand_beside_them():
    q, k, v = heads_of(40, 40, batch=1)
    lists = by_hand([[3], [], [5, 22]], [[0, 1], [4, 9, 20], [0, 21, 38]])
    found = both(q, k, v, lists)
    keep = torch.zeros(40, 40, dtype=torch.bool, device=DEVICE)
    for tile, seen in enumerate(
        [{0, 1, *range(3, 19)}, {4, 9, 20}, {0, 21, 38, *range(5, 21), *range(22, 38)}]
    ):
        for t in range(16 * tile, min(40, 16 * tile + 16)):
            keep[t, [s for s in seen if s <= t]] = True
    expected = one_softmax(q, k, v, keep.expand(1, 4, -1, -1))
    torch.testing.assert_close(found.out.double(), expected, rtol=2e-5, atol=2e-5)
    assert not found.out[0, 16:20].isnan().any()


def test_columns_are_many_and_bounded_from_below_and_by_the_row_s_end():
    q, k, v = heads_of(32, 90, batch=1)
    k[0, 85:] = v[0, 85:] = NAN
    columns = [list(range(0, 84, 3)), list(range(1, 90, 2))]
    lists = by_hand([[], []], columns)
    low = torch.full((1, 32), 30, dtype=torch.int32, device=DEVICE)
    both(q, k, v, lists, start=58, lengths=torch.tensor([85], device=DEVICE), low=low)


@pytest.mark.parametrize("key_block", [16, 64])
def test_each_query_of_a_tile_sees_what_it_chose_itself(key_block):
    tokens = 560 if key_block == 16 else 70
    q, k, v = heads_of(30, tokens, batch=1)
    blocks = -(-tokens // key_block)
    chosen = random_mask(1, 4, 30, blocks, density=0.3)  # 35 blocks are two words, and bit 31 is among them
    chosen[:, :, :, min(31, blocks - 1)] = True
    tiles = torch.nn.functional.pad(chosen, (0, 0, 0, 2)).unflatten(2, (2, 16)).any(3)
    lists = BlockLists.from_mask(tiles, query_block=16, key_block=key_block).with_members(chosen)
    found = both(q, k, v, lists, start=tokens - 30)
    keep = chosen.repeat_interleave(key_block, -1)[..., :tokens]
    keep = keep & (
        torch.arange(tokens, device=DEVICE) <= torch.arange(tokens - 30, tokens, device=DEVICE)[:, None]
    )
    expected = one_softmax(q, k, v, keep)
    torch.testing.assert_close(found.out.double(), expected, rtol=2e-5, atol=2e-5)


def test_parts_of_one_attention_add_up_by_their_sums():
    q, k, v = heads_of(48, 48, batch=1)
    mask = random_mask(1, 4, 3, 3)
    parts = [
        block_attention(q, k, v, BlockLists.from_mask(x, query_block=16, key_block=16), backend="triton")
        for x in (mask, ~mask)
    ]
    merged = Merger(Part(parts[0].out[0], parts[0].lse[0].T))
    merged.add(Part(parts[1].out[0], parts[1].lse[0].T), slice(0, 48))
    whole = both(q, k, v, lists_for(48, 48, 1, batch=1, density=2))
    torch.testing.assert_close(merged.out, whole.out[0], rtol=2e-5, atol=2e-5)


def test_numbers_come_in_any_order_and_count_once():
    numbers = torch.tensor([[[[2, 0, 2, -1], [-1, -1, -1, -1], [1, 1, 0, 1]]]], device=DEVICE)
    lists = BlockLists.from_blocks(numbers, query_block=16, key_block=16)
    assert lists.counts.tolist() == [[[2, 0, 2]]]
    assert lists.firsts[0, 0, 0, :2].tolist() == [0, 32]
    assert lists.firsts[0, 0, 2, :2].tolist() == [0, 16]
    q, k, v = heads_of(48, 48, batch=1)
    mask = torch.tensor([[[[1, 0, 1], [0, 0, 0], [1, 1, 0]]]], dtype=torch.bool, device=DEVICE)
    same = BlockLists.from_mask(mask, query_block=16, key_block=16)
    assert torch.equal(both(q, k, v, lists).out, both(q, k, v, same).out)


@pytest.mark.parametrize(
    ("firsts", "columns"),
    [
        ([[0], [0, 0], [0]], None),
        ([[0], [16, 0], [0]], None),
        ([[0], [0, 15], [0]], None),
        ([[0], [-1], [0]], None),
        ([[0], [0], [0]], [[], [16, 16], []]),
        ([[0], [0], [0]], [[], [17, 16], []]),
    ],
)
def test_a_list_that_would_count_a_key_twice_is_refused_and_looks_like_no_answer(firsts, columns):
    q, k, v = heads_of(48, 48, batch=1)
    lists = by_hand(firsts, columns)
    with pytest.raises(ValueError, match="ascending"):
        block_attention(q, k, v, lists, backend="torch")
    found = block_attention(q, k, v, lists, backend="triton")
    assert found.out[0, 16:32].isnan().all()
    assert found.lse[0, 16:32].isnan().all()
    assert found.out[0, :16].isfinite().all()


def test_long_lists_are_looked_through_piece_by_piece(monkeypatch):
    monkeypatch.setattr(importlib.import_module("nsa_kernels.triton.blocks.prefill"), "_SCAN", 4)
    q, k, v = heads_of(16, 200, batch=1, kv_heads=1)
    firsts = [0, 17, 40, 56, 80, 96, 120, 136, 160, 180]
    both(q, k, v, by_hand([firsts]), start=150)
    firsts[4] = 70  # it overlaps the one before, across the seam
    found = block_attention(q, k, v, by_hand([firsts]), start=150, backend="triton")
    assert found.out.isnan().all()


def test_a_column_within_a_block_is_refused():
    lists = by_hand([[0], [0], [4]], [[], [], [3, 19]])
    with pytest.raises(ValueError, match="count twice"):
        lists.check()
    by_hand([[0], [0], [4]], [[], [], [3, 20]]).check()


def test_members_without_a_bit_for_a_block_are_refused_and_see_nothing_of_it():
    q, k, v = heads_of(16, 700, batch=1, kv_heads=1)
    lists = by_hand([[0, 640]])
    short = lists.with_members(torch.ones(1, 2, 16, 32, dtype=torch.bool, device=DEVICE))
    with pytest.raises(ValueError, match="where there are bits"):
        short.check()
    found = block_attention(q, k, v, short, start=680, backend="triton")
    expected = block_attention(q, k, v, by_hand([[0]]), start=680, backend="torch")
    torch.testing.assert_close(found.out, expected.out, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="multiples of 16"):
        by_hand([[8]]).with_members(torch.ones(1, 2, 16, 40, dtype=torch.bool)).check()


def test_pairs_are_those_that_a_tile_computes():
    lists = by_hand([[0], [5], [0, 30]], [[], [2, 25], []])
    seen = torch.zeros(40, 40, dtype=torch.bool)
    for tile, keys in enumerate([range(16), {2, 25, *range(5, 21)}, {*range(16), *range(30, 46)}]):
        for t in range(16 * tile, min(40, 16 * tile + 16)):
            seen[t, [s for s in keys if s <= t]] = True
    assert lists.pairs(40) == int(seen.sum())


# ---- decode


def pages_for(batch, listed, pages, page, *, most=5, seed=5):
    pick = torch.Generator().manual_seed(seed)
    firsts = torch.rand(batch, listed, pages, generator=pick).argsort(-1)[..., :most] * page
    counts = torch.randint(0, most + 1, (batch, listed), generator=pick)
    counts[0, 0] = 0
    return PageLists(firsts=firsts.int().to(DEVICE), counts=counts.int().to(DEVICE), page=page)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("group", "page"), [(1, 16), (4, 64), (8, 24)])
def test_a_decoded_query_reads_its_pages(group, page, dtype):
    for listed in sorted({2 * group, 2, 1}):
        q, k, v = heads_of(1, 300, batch=3, group=group, width=32, value_width=16, dtype=dtype)
        lengths = torch.tensor([300, 131, 7], device=DEVICE)
        for row, length in enumerate(lengths.tolist()):
            k[row, length:] = v[row, length:] = NAN
        lists = pages_for(3, listed, -(-300 // page), page)
        expected = page_decode(q[:, 0].float(), k.float(), v.float(), lists, lengths=lengths, backend="torch")
        found = page_decode(q[:, 0], k, v, lists, lengths=lengths, backend="triton")
        torch.testing.assert_close(found.float(), expected, rtol=CLOSE[dtype], atol=CLOSE[dtype])
        assert not found[0, : 2 * group // listed].any()
        keep = torch.zeros(3, 2 * group, 1, 300, dtype=torch.bool, device=DEVICE)
        for row in range(3):
            for head in range(2 * group):
                own = head // (2 * group // listed)
                for first in lists.firsts[row, own, : lists.counts[row, own]].tolist():
                    keep[row, head, 0, first : min(first + page, int(lengths[row]))] = True
        held = [x.nan_to_num(0.0) for x in (k, v)]
        exact = one_softmax(q, *held, keep)[:, 0]
        torch.testing.assert_close(expected.double(), exact, rtol=2e-5, atol=2e-5)


def test_decode_takes_caches_with_heads_in_front():
    q, k, v = heads_of(1, 100)
    lists = pages_for(2, 4, 7, 16)
    lengths = torch.tensor([100, 90], device=DEVICE)
    expected = page_decode(q[:, 0], k, v, lists, lengths=lengths, backend="triton")
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)]
    found = page_decode(q[:, 0], *turned, lists, lengths=lengths, backend="triton")
    assert torch.equal(found, expected)


def test_pages_that_overlap_are_refused():
    def lists(*firsts):
        made = torch.tensor([[firsts]], dtype=torch.int32)
        return PageLists(firsts=made, counts=torch.tensor([[2]], dtype=torch.int32), page=16)

    lists(32, 0, 0).check()
    for wrong in ((0, 15, 99), (16, 16, 0), (-16, 0, 0)):
        with pytest.raises(ValueError, match="apart"):
            lists(*wrong).check()


# ---- without a device


def test_a_rehearsal_notes_what_would_be_launched():
    def meta(*shape):
        return torch.zeros(*shape, dtype=torch.float16, device="meta")

    mask = torch.ones(1, 4, 3, 3, dtype=torch.bool, device="meta")
    lists = BlockLists.from_mask(mask, query_block=64, key_block=64)
    pages = PageLists(firsts=lists.firsts[:, :, 0], counts=lists.counts[:, :, 0], page=16)
    with rehearsal(torch.device("cpu")) as launches:
        found = block_attention(meta(1, 150, 4, 64), *[meta(1, 150, 2, 64)] * 2, lists, backend="triton")
        out = page_decode(
            meta(1, 4, 64), *[meta(1, 150, 2, 64)] * 2, pages, lengths=pages.counts[0, :1], backend="triton"
        )
    assert (found.out.shape, found.lse.shape, out.shape) == ((1, 150, 4, 64), (1, 150, 4), (1, 4, 64))
    names = [launch.kernel.fn.__name__ for launch in launches]
    assert names == ["block_prefill_kernel", "page_partial_kernel", "merge_splits_kernel"]


# ---- what is refused


def test_wrong_inputs_are_named():
    q, k, v = heads_of(40, 40)
    lists = lists_for(40, 40, 4)
    with pytest.raises(ValueError, match="40 queries are 3 tiles of 16"):
        block_attention(q, k, v, lists_for(64, 64, 4))
    with pytest.raises(ValueError, match="L = 4"):
        block_attention(q, k, v, lists_for(40, 40, 3))
    with pytest.raises(ValueError, match="append the queries' own keys"):
        block_attention(q, k, v, lists, start=1)
    with pytest.raises(ValueError, match="no backward"):
        block_attention(q.clone().requires_grad_(), k, v, lists, backend="triton")
    with pytest.raises(ValueError, match="power of 2"):
        block_attention(*heads_of(40, 40, width=24), lists, backend="triton")
    with pytest.raises(ValueError, match="unknown backend"):
        block_attention(q, k, v, lists, backend="cuda")
    with pytest.raises(ValueError, match="low must be int32"):
        block_attention(q, k, v, lists, low=torch.zeros(2, 40))
    with pytest.raises(ValueError, match="query_block must be a power of 2"):
        lists_for(40, 40, 4, query_block=24)
    with pytest.raises(ValueError, match="int32"):
        replace(lists, firsts=lists.firsts.long())


def test_auto_is_the_plain_twin_where_gradients_are_asked_for():
    q, k, v = heads_of(40, 40)
    q.requires_grad_()
    block_attention(q, k, v, lists_for(40, 40, 4)).out.sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


@pytest.mark.parametrize(("start", "first", "end"), [(0, 0, 75), (32, 32, 75), (32, 41, 75), (16, 20, 21)])
@pytest.mark.parametrize("kind", ["blocks", "columns", "members"])
def test_reads_are_the_cells_that_are_seen(kind, start, first, end):
    queries, keys, heads = end - start, end, 4
    lists = lists_for(queries, keys, 2, batch=1, density=0.4)
    keep = lists.seen(keys).repeat_interleave(16, dim=2)[:, :, :queries].repeat_interleave(2, dim=1)
    if kind == "columns":
        single = torch.arange(keys, device=DEVICE, dtype=torch.int32).expand(*lists.counts.shape, -1)
        beside = ~lists.covers(single) & (single % 3 == 0)
        order = (~beside).byte().argsort(dim=-1, stable=True)
        counts = beside.sum(-1, dtype=torch.int32)
        lists = replace(lists, columns=single.gather(-1, order).contiguous(), column_counts=counts)
        lists.check()
        keep = lists.seen(keys).repeat_interleave(16, dim=2)[:, :, :queries].repeat_interleave(2, dim=1)
    if kind == "members":
        chosen = random_mask(1, heads, queries, -(-keys // 16), seed=8)
        lists = lists.with_members(chosen)
        keep = chosen.repeat_interleave(16, dim=3)[..., :keys]
    position = torch.arange(start, end, device=DEVICE)[:, None]
    keep = keep & (torch.arange(keys, device=DEVICE) <= position)
    expected = int(keep[:, :, first - start :].sum())
    assert int(lists.reads(heads, start=start, first=first, end=end)) == expected > 0


def test_reads_of_pages_are_the_tokens_that_rows_have():
    firsts = torch.tensor([[[8, 0, 24]], [[16, 4, 0]]], dtype=torch.int32, device=DEVICE)
    counts = torch.tensor([[3], [2]], dtype=torch.int32, device=DEVICE)
    lists = PageLists(firsts=firsts, counts=counts, page=4)
    # Row 0: 4 + 4 + 1 of 25 tokens; row 1: none of the page behind its 10, 4 of the other.
    assert int(lists.reads(2, torch.tensor([25, 10], device=DEVICE))) == 2 * (9 + 4)
