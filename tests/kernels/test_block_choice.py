"""Blocks chosen as the methods choose them, against the definitions written out."""

import os
from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels.block_choice import (
    block_sparse,
    column_and_diagonal_sums,
    lists_of_slashes,
    moba,
    top_indices,
    top_mask,
    vertical_slash,
)
from nsa_kernels.blocks import block_attention, page_decode
from nsa_kernels.order_free import block_means
from nsa_kernels.pages import PageExtremes, best_pages, quest_pages, with_tokens
from nsa_kernels.triton.blocks import slash_lists

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def heads_of(tokens, *, batch=2, kv_heads=2, group=2, width=16):
    return drawn(batch, tokens, kv_heads * group, width), drawn(batch, tokens, kv_heads, width, seed=1)


def product(q, k):
    """[B, H, N, S] in float32."""
    return torch.einsum("bnhd,bshd->bhns", q, k.repeat_interleave(q.shape[2] // k.shape[2], 2))


def test_the_best_come_first_and_of_equal_ones_the_lower_index(monkeypatch):
    scores = torch.tensor([0.5, -0.0, 0.0, -2.0, 0.5, -torch.inf, torch.inf, -1.0], device=DEVICE)
    assert top_indices(scores, 8).tolist() == [6, 0, 4, 1, 2, 7, 3, 5]
    many = (drawn(3, 200, seed=4) * 3).round()
    expected = many.sort(dim=-1, descending=True, stable=True).indices[:, :50]
    assert torch.equal(top_indices(many, 50), expected)
    assert torch.equal(top_indices(many, 50, ordered=False).sort(-1).values, expected.sort(-1).values)
    mask = torch.zeros(3, 200, dtype=torch.bool, device=DEVICE).scatter_(-1, expected, True)
    assert torch.equal(top_mask(many, 50), mask)
    monkeypatch.setattr("nsa_kernels.block_choice._SHORT", 100)
    assert torch.equal(top_mask(many, 50), mask)


def test_means_of_blocks_end_with_what_is_there():
    x = drawn(2, 37, 3, 8)
    means = block_means(x, 16)
    assert means.shape == (2, 3, 3, 8)
    torch.testing.assert_close(means[:, 1], x[:, 16:32].mean(1))
    torch.testing.assert_close(means[:, 2], x[:, 32:].mean(1))


@pytest.mark.parametrize("tokens", [150, 128, 20])
def test_block_sparse_takes_the_best_blocks_up_to_a_tile_s_own(tokens):
    q, k = heads_of(tokens)
    lists = block_sparse(q, k, top=3, block=16)
    lists.check()
    scores = product(block_means(q, 16), block_means(k, 16))
    seen = lists.seen(tokens)
    for tile in range(-(-tokens // 16)):
        best = scores[..., tile, : tile + 1].sort(dim=-1, descending=True, stable=True).indices
        for row in range(2):
            for head in range(4):
                wanted = set(best[row, head, :3].tolist())
                assert set((seen[row, head, tile].nonzero()[:, 0] // 16).tolist()) == wanted


@pytest.mark.parametrize(("chunk", "top", "tokens"), [(16, 3, 120), (32, 2, 120), (16, 20, 70)])
def test_moba_is_each_query_s_own_choice(chunk, top, tokens, monkeypatch):
    monkeypatch.setattr("nsa_kernels.block_choice.CELLS", 4000)
    q, k = heads_of(tokens)
    v = drawn(2, tokens, 2, 16, seed=2)
    lists = moba(q, k, chunk=chunk, top=top, query_block=16)
    lists.check()
    gates = product(q, block_means(k, chunk))
    keep = torch.zeros(2, 4, tokens, tokens, dtype=torch.bool, device=DEVICE)
    for t in range(tokens):
        own = t // chunk
        best = gates[:, :, t, :own].topk(min(top - 1, own), -1).indices
        keep[:, :, t].scatter_(
            -1, (best[..., None] * chunk + torch.arange(chunk, device=DEVICE)).flatten(2), True
        )
        keep[:, :, t, own * chunk : t + 1] = True
    out = block_attention(q, k, v, lists).out
    weights = (product(q, k) / 4).masked_fill(~keep, -torch.inf).softmax(-1)
    expected = torch.einsum("bhns,bshd->bnhd", weights, v.repeat_interleave(2, 2))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    if top >= -(-tokens // chunk):
        causal = torch.ones(tokens, tokens, dtype=torch.bool, device=DEVICE).tril()
        assert torch.equal(keep, causal.expand_as(keep))


def test_a_piece_of_a_prompt_chooses_what_the_whole_does():
    q, k = heads_of(140, batch=1)
    whole = moba(q, k, chunk=16, top=3, query_block=16)
    for begin, end in ((0, 33), (32, 100), (96, 140)):
        part = moba(q[:, begin:end], k[:, :end], chunk=16, top=3, query_block=16, start=begin)
        assert torch.equal(part.members, whole.members[:, :, begin:end])
        tiles = end // 16 - begin // 16  # whole ones
        expected = whole.seen(end)[:, :, begin // 16 : begin // 16 + tiles]
        assert torch.equal(part.seen(end)[:, :, :tiles], expected)


def test_a_block_of_queries_may_be_several_tiles():
    q, k = heads_of(150)
    given = {"top": 2, "block": 64}
    seen = block_sparse(q, k, **given, query_block=16).seen(150)
    assert torch.equal(seen, block_sparse(q, k, **given).seen(150).repeat_interleave(4, 2)[:, :, :10])


def test_sums_over_columns_and_diagonals():
    q, k = heads_of(50)
    columns, offsets = column_and_diagonal_sums(q[:, -7:], k)
    scores = product(q, k)[:, :, -7:] / 4
    scores = scores.masked_fill(torch.ones(7, 50, dtype=torch.bool, device=DEVICE).triu(44), -torch.inf)
    weights = scores.softmax(-1)
    torch.testing.assert_close(columns, weights.sum(2))
    by_offset = torch.zeros_like(offsets)
    for i in range(7):
        for s in range(43 + i + 1):
            by_offset[..., 43 + i - s] += weights[:, :, i, s]
    torch.testing.assert_close(offsets, by_offset)


def merged(columns, offsets, tile, block):
    """Runs and columns of a tile as the definition walks through them, one offset after another."""
    bottom = (tile + 1) * block
    ends = sorted(max(bottom - o, block) for o in offsets if o < bottom)
    ranges = []
    for end in ends:
        if not ranges or end > ranges[-1][1] + block:
            ranges.append([end - block, end])
        elif end > ranges[-1][1]:
            ranges[-1][1] += block
    firsts = [first for low, high in ranges for first in range(low, high, block)]
    inside = {key for first in firsts for key in range(first, first + block)}
    return firsts, [c for c in sorted(columns) if c not in inside and c < bottom]


@pytest.mark.parametrize("offsets", ["few", "many", "all", "one"])
@pytest.mark.parametrize("way", ["torch", "triton"])
def test_runs_and_columns_are_those_of_the_definition(way, offsets, monkeypatch):
    tokens, block = 230, 16
    count = {"few": 9, "many": 120, "all": tokens, "one": 1}[offsets]
    pick = torch.Generator().manual_seed(5)
    slashes = torch.rand(1, 2, tokens, generator=pick).argsort(-1)[..., :count]
    if offsets == "one":
        slashes = torch.tensor([[[10], [0]]])
    columns = torch.rand(1, 2, tokens, generator=pick).argsort(-1)[..., :40].sort(-1).values
    if way == "triton":
        monkeypatch.setattr("nsa_kernels.block_choice._slash_lists_plainly", slash_lists)
    lists = lists_of_slashes(columns.to(DEVICE), slashes.to(DEVICE), tokens=tokens, block=block)
    lists.check()
    for head in range(2):
        for tile in range(-(-tokens // block)):
            firsts, beside = merged(columns[0, head].tolist(), slashes[0, head].tolist(), tile, block)
            found = lists.firsts[0, head, tile, : lists.counts[0, head, tile]].tolist()
            assert found == firsts
            assert lists.columns[0, head, tile, : lists.column_counts[0, head, tile]].tolist() == beside


def test_rows_128_to_191_and_offset_10_read_the_keys_118_to_181():
    lists = lists_of_slashes(
        torch.zeros(1, 1, 0, dtype=torch.long, device=DEVICE),
        torch.tensor([[[10]]], device=DEVICE),
        tokens=192,
    )
    assert lists.seen(192)[0, 0, 2].nonzero()[:, 0].tolist() == list(range(118, 182))


@pytest.mark.parametrize("tokens", [300, 333])
def test_vertical_slash_reads_what_its_columns_and_diagonals_name(tokens):
    """The kernel's reading holds every key that the tokens' reading holds, and all of them are dense."""
    q, k = heads_of(tokens, batch=1)
    lists = vertical_slash(q, k, vertical=35, slash=110)
    lists.check()
    columns, offsets = column_and_diagonal_sums(q[:, -64:], k)
    columns[..., :30], offsets[..., :100] = torch.inf, torch.inf
    seen = lists.seen(tokens)
    for head in range(4):
        for t in range(0, tokens, 7):
            named = {s for s in columns[0, head].topk(35).indices.tolist() if s <= t}
            named |= {t - o for o in offsets[0, head].topk(110).indices.tolist() if o <= t}
            assert named <= set(seen[0, head, t // 64].nonzero()[:, 0].tolist())
    every = vertical_slash(q, k, vertical=tokens, slash=50).seen(tokens)
    tiles = torch.arange(every.shape[2], device=DEVICE)[:, None] * 64 + 63
    assert bool(every[..., torch.arange(tokens, device=DEVICE) <= tiles].all())


# ---- Quest


def exact_scores(q, k, length, page):
    """sum_d max(q_d max_d, q_d min_d) of one row's pages, [H, pages]."""
    scores = []
    for first in range(0, length, page):
        keys = k[first : min(first + page, length)].repeat_interleave(q.shape[0] // k.shape[1], 1)
        scores.append(torch.maximum(q * keys.amax(0), q * keys.amin(0)).sum(-1))
    return torch.stack(scores, -1)


@pytest.mark.parametrize("way", ["torch", "triton"])
@pytest.mark.parametrize("group", [1, 4])
def test_extremes_bound_a_page_whatever_stands_behind_the_row(way, group):
    q, k = drawn(2, 2 * group, 16), drawn(2, 75, 2, 16, seed=1)
    lengths = [75, 40]
    k[1, 40:] = float("nan")
    kept = PageExtremes.of(k, page=16, lengths=torch.tensor(lengths, device=DEVICE), capacity=200)
    assert kept.high.shape == (2, 13, 2, 16)
    scores = kept.scores(q, backend=way)
    for row, length in enumerate(lengths):
        pages = -(-length // 16)
        expected = exact_scores(q[row], k[row], length, 16)
        torch.testing.assert_close(scores[row, :, :pages], expected, rtol=1e-5, atol=1e-5)
        products = product(q[row][None, None], k[row, :length][None])[0, :, 0]
        for page in range(pages):
            assert bool((products[:, page * 16 : page * 16 + 16] <= expected[:, page, None] + 1e-5).all())


@pytest.mark.parametrize("way", ["torch", "triton"])
def test_extremes_kept_token_by_token_are_those_of_the_whole(way):
    k = drawn(2, 60, 2, 16)
    starts = torch.tensor([20, 31], device=DEVICE)
    kept = PageExtremes.of(k[:, :31], page=16, lengths=starts, capacity=60)
    row = torch.arange(2, device=DEVICE)
    for step in range(25):
        new = k[row, starts + step], starts + step
        kept.append(*new, backend=way)
    for i, length in enumerate((starts + 25).tolist()):
        whole = PageExtremes.of(k[i : i + 1, :length], page=16)
        pages = -(-length // 16)
        assert torch.equal(kept.high[i, :pages], whole.high[0])
        assert torch.equal(kept.low[i, :pages], whole.low[0])


def test_pages_that_are_not_asked_for_are_not_read():
    q, k = drawn(3, 4, 16), drawn(3, 300, 2, 16, seed=1)
    kept = PageExtremes.of(k, page=4)
    counts = torch.tensor([75, 17, 0], device=DEVICE)
    hidden = (torch.arange(75, device=DEVICE) >= counts[:, None])[..., None, None]
    poisoned = replace(
        kept, high=kept.high.masked_fill(hidden, torch.nan), low=kept.low.masked_fill(hidden, torch.nan)
    )
    expected, found = kept.scores(q, backend="torch"), poisoned.scores(q, counts=counts, backend="triton")
    for row, count in enumerate(counts.tolist()):
        torch.testing.assert_close(found[row, :, :count], expected[row, :, :count], rtol=1e-5, atol=1e-5)
        assert bool((found[row, :, count:] == 0).all())


@pytest.mark.parametrize("way", ["torch", "triton"])
@pytest.mark.parametrize(("first", "local"), [(5, 7), (0, 16), (20, 0), (90, 70), (3, 200)])
def test_tokens_beside_pages_count_once(way, first, local):
    """Rows whose pages lie under the leading or latest tokens, or across their edge."""
    lengths = torch.tensor([160, 93, 4, 0], device=DEVICE)
    q, k, v = drawn(4, 2, 16), drawn(4, 160, 1, 16, seed=1), drawn(4, 160, 1, 16, seed=2)
    scores = drawn(4, 2, 20, seed=3)
    pages = best_pages(scores, lengths, page=8, budget=40, least=5, backend=way)
    lists = with_tokens(pages, lengths, first=first, local=local)
    lists.check()
    expected = torch.zeros(4, 2, 160, dtype=torch.bool, device=DEVICE)
    for row, length in enumerate(lengths.tolist()):
        expected[row, :, : min(first, length)] = True
        expected[row, :, max(0, length - local) : length] = True
        for head in range(2):
            for begin in pages.firsts[row, head, : int(pages.counts[row, head])].tolist():
                expected[row, head, begin : min(begin + 8, length)] = True
    assert int(lists.reads(2, lengths)) == int(expected.sum())
    weights = (product(q[:, None], k)[:, :, 0] / 4).masked_fill(~expected, -torch.inf).softmax(-1)
    weights = weights.masked_fill(~expected, 0.0)
    wanted = torch.einsum("bhs,bshd->bhd", weights, v.repeat_interleave(2, 2))
    found = page_decode(q, k, v, lists, lengths=lengths, backend=way)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["torch", "triton"])
def test_extremes_outgrow_their_room(way):
    k = drawn(2, 60, 2, 16)
    kept = PageExtremes.of(k[:, :30], page=8)
    for position in range(30, 60):
        kept = kept.with_room(position + 1)
        kept.append(k[:, position], torch.full((2,), position, device=DEVICE), backend=way)
    whole = PageExtremes.of(k, page=8)
    assert kept.with_room(64) is kept
    assert torch.equal(kept.high, whole.high)
    assert torch.equal(kept.low, whole.low)
    assert torch.equal(kept.part(2, 5).low, whole.low[:, 2:5])


@pytest.mark.parametrize("reading", ["eval", "kernel"])
@pytest.mark.parametrize("budget", [48, 70, 1000])
def test_quest_decodes_as_its_method_does(reading, budget):
    """Pages and outputs of `nsa_models.methods.quest`, rows of unequal length."""
    quest = pytest.importorskip("nsa_models.methods.quest")
    q, k, v = drawn(3, 2, 16), drawn(3, 150, 1, 16, seed=1), drawn(3, 150, 1, 16, seed=2)
    k[1, 16:32] = k[1, 32:48]  # equal pages: a tie
    lengths = torch.tensor([150, 97, 5], device=DEVICE)
    keep = quest.select(
        q[:, :, None], k.transpose(1, 2), lengths[:, None] - 1, budget=budget, page=16, reading=reading
    )[:, :, 0]
    kept = PageExtremes.of(k, page=16, lengths=lengths)
    for way in ("torch", "triton"):
        scores = kept.scores(q, backend=way)
        lists = quest_pages(scores, lengths, page=16, budget=budget, reading=reading, backend=way)
        lists.check()
        found = page_decode(q, k, v, lists, lengths=lengths, backend="triton")
        index = lists.firsts[..., None] + torch.arange(16, device=DEVICE)
        used = torch.arange(lists.firsts.shape[-1], device=DEVICE) < lists.counts[..., None]
        used = used[..., None] & (index < lengths[:, None, None, None])
        seen = torch.zeros(3, 2, 160, dtype=torch.bool, device=DEVICE)
        seen.scatter_(-1, torch.where(used, index, 159).flatten(2).long(), True)
        assert torch.equal(seen[..., :150], keep)
        weights = (product(q[:, None], k)[:, :, 0] / 4).masked_fill(~keep, -torch.inf).softmax(-1)
        expected = torch.einsum("bhs,bshd->bhd", weights, v.repeat_interleave(2, 2))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reading", ["eval", "kernel"])
def test_the_best_pages_are_found_without_sorting(reading):
    """Ties, both zeros, numbers of either sign, infinities, and rows from empty to longer than the budget."""
    scores = (drawn(6, 3, 70, seed=7) * 2).round()
    scores[0, 0] = 0.0
    scores[0, 1] = -torch.inf
    scores[1] = -scores[1].abs() - 1e-30
    scores[2, 0, ::3], scores[2, 1, 5] = torch.inf, -0.0
    lengths = torch.tensor([1120, 1120, 1117, 300, 33, 1], device=DEVICE)
    for budget in (48, 320, 5000):
        given = {"page": 16, "budget": budget, "reading": reading}
        found, expected = (quest_pages(scores, lengths, **given, backend=way) for way in ("triton", "torch"))
        found.check()
        assert torch.equal(found.counts, expected.counts)
        for row in range(6):
            for head in range(3):
                count = int(found.counts[row, head])
                pages = found.firsts[row, head, :count].tolist()
                assert pages == sorted(expected.firsts[row, head, :count].tolist())


def test_a_budget_below_what_a_reading_takes_is_refused():
    with pytest.raises(ValueError, match="eval reading"):
        quest_pages(drawn(1, 2, 9), torch.tensor([140]), page=16, budget=47)


def test_lists_without_columns_need_none():
    q, k = heads_of(200, batch=1)
    lists = block_sparse(q, k, top=2)
    same = replace(lists, columns=lists.firsts[..., :0], column_counts=torch.zeros_like(lists.counts))
    v = drawn(1, 200, 2, 16, seed=3)
    expected = block_attention(q, k, v, lists, backend="triton").out
    assert torch.equal(block_attention(q, k, v, same, backend="triton").out, expected)
