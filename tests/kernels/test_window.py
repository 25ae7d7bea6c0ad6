"""Windows as lists, and the attention that their keys got: definition, twin and kernel."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels.blocks import block_attention
from nsa_kernels.torch_ import blocks as twin
from nsa_kernels.window import tile_for, window_lists, window_sums

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Queries, keys and window: a prompt's first, later ones, a last one alone, windows of one key and of all.
SIZES = [(70, 70, 9), (33, 90, 40), (130, 131, 64), (1, 77, 30), (1, 5, 30), (40, 100, 1), (20, 61, 500)]


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def inside(queries, keys, window):
    """[N, S] keys of each query's window."""
    position = torch.arange(keys - queries, keys, device=DEVICE)[:, None]
    key = torch.arange(keys, device=DEVICE)
    return (key <= position) & (key > position - window)


def weighed(q, k, keep, scale):
    """Weights [H, N, S] and log-sum-exp [H, N] of a softmax over `keep` and one more score of 1 a query."""
    scores = torch.einsum("nhd,shd->hns", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) * scale
    scores = scores.masked_fill(~keep, -torch.inf)
    whole = torch.cat([scores, torch.ones_like(scores[..., :1])], -1)
    return whole.softmax(-1)[..., :-1], whole.logsumexp(-1)


@pytest.mark.parametrize("sizes", SIZES)
def test_lists_hold_each_query_s_window_and_no_more(sizes):
    queries, keys, window = sizes
    lists, low = window_lists(keys - queries, queries, window, DEVICE)
    lists.check()
    tile = tile_for(queries)
    assert lists.query_block == tile
    position = torch.arange(keys - queries, keys, device=DEVICE)[:, None]
    key = torch.arange(keys, device=DEVICE)
    seen = lists.seen(keys)[0, 0].repeat_interleave(tile, 0)[:queries]
    seen = seen & (key <= position) & (key >= low[0, :, None])
    assert torch.equal(seen, inside(queries, keys, window))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_sums_are_those_of_the_weights(sizes, backend):
    queries, keys, window = sizes
    q, k = drawn(queries, 4, 16), drawn(keys, 2, 16, seed=1)
    weights, lse = weighed(q, k, inside(queries, keys, window), 0.3)
    found = window_sums(q, k, lse, window=window, scale=0.3, backend=backend)
    expected = weights.sum(1)
    assert found.shape[1] == min(keys, queries + window - 1)
    torch.testing.assert_close(found, expected[:, -found.shape[1] :], rtol=1e-4, atol=1e-5)
    assert not expected[:, : -found.shape[1]].any()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_log_sum_exps_of_attention_by_lists_give_shares_of_one(backend):
    q, k = drawn(90, 4, 16, dtype=torch.float16), drawn(90, 1, 16, dtype=torch.float16, seed=1)
    lists, low = window_lists(0, 90, 25, DEVICE)
    _, lse = block_attention(q[None], k[None], k[None], lists, low=low, scale=0.5, backend=backend)
    # lse of one row [N, H], and keys in a cache's layout, heads first.
    keys = k.transpose(0, 1).contiguous().transpose(0, 1)
    found = window_sums(q, keys, lse[0].T, window=25, scale=0.5, backend=backend)
    torch.testing.assert_close(found.sum(-1), torch.full((4,), 90.0, device=DEVICE), rtol=1e-3, atol=0)


def test_few_weights_at_a_time_give_the_same(monkeypatch):
    q, k = drawn(60, 4, 16), drawn(80, 2, 16, seed=1)
    _, lse = weighed(q, k, inside(60, 80, 17), 0.25)
    expected = window_sums(q, k, lse, window=17, backend="torch")
    monkeypatch.setattr(twin, "_CELLS", 4 * (17 + 60) * 7)
    found = window_sums(q, k, lse, window=17, backend="torch")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": drawn(9, 2, 16)}, r"0 < N <= S, got \[10, 4, 16\] and \[9, 2, 16\]"),
        ({"k": drawn(20, 3, 16)}, "got H = 4 and H_kv = 3"),
        ({"lse": drawn(10, 4)}, r"lse must be \[H, N\] = \[4, 10\], got \[10, 4\]"),
        ({"window": 0}, "window must be at least 1 key, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    fitting = {"q": drawn(10, 4, 16), "k": drawn(20, 2, 16), "lse": drawn(4, 10), "window": 3}
    with pytest.raises(ValueError, match=message):
        window_sums(**{**fitting, **given})
