"""The branches' kernel for Hopper against the plain ones, on a GPU (`make test-gpu`)."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from launch_candidates import HOPPER

from nsa_kernels import BlockGeometry, nsa_attention, num_blocks
from nsa_kernels.triton.configs import H200
from nsa_kernels.triton.hopper import conditions
from nsa_kernels.triton.hopper.conditions import serves
from nsa_kernels.triton.prefill.compressed import compressed_forward
from nsa_kernels.triton.prefill.forced import forced_forward
from nsa_kernels.triton.prefill.window import window_forward
from nsa_kernels.triton.prefill.window_and_forced import window_and_forced_forward
from nsa_kernels.triton.tiles import Grid
from nsa_kernels.types import Caches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("poisoned_allocations"),
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="needs a CUDA device of capability 9.0",
    ),
]

GEOMETRY = BlockGeometry()
SMALL = BlockGeometry(block=16, stride=8, select_block=32, select_count=8, window=16)
TINY = BlockGeometry(block=16, stride=8, select_block=16, select_count=8, window=1)
LARGE = BlockGeometry(block=32, stride=16, select_block=128, select_count=4, window=100)
PLAIN = H200["compressed_forward"][128]
WIDTH = 128
SIXTEEN = {"heads": 64, "kv_heads": 4}

CASES: dict[str, dict[str, Any]] = {
    "nothing is visible": {"queries": 20, **SIXTEEN},
    "one block": {"queries": 33, **SIXTEEN},
    "1000 tokens": {"queries": 1000, **SIXTEEN},
    "4096 tokens": {"queries": 4096, **SIXTEEN},
    "more pieces than programs": {"queries": 2500, "heads": 32, "kv_heads": 2, "batch": 3},
    "ragged": {"queries": 1500, "heads": 32, "kv_heads": 2, "starts": [0, 700], "ends": [1111, 1790]},
    "late starts against a cache": {
        "queries": 300,
        "heads": 32,
        "kv_heads": 2,
        "starts": [4700, 3001, 0],
        "ends": [5000, 3050, 0],
    },
    "a part of a longer cache": {
        "queries": 700,
        "heads": 32,
        "kv_heads": 2,
        "starts": [0, 300],
        "ends": [700, 900],
        "capacity": 2000,
    },
    "9001 tokens": {"queries": 9001, "heads": 16, "kv_heads": 1},
    "2 heads to a group": {
        "queries": 2000,
        "heads": 8,
        "kv_heads": 4,
        "starts": [0, 37],
        "ends": [2000, 999],
    },
    "64 heads to a group": {"queries": 500, "heads": 64, "kv_heads": 1},
    "one KV head": {"queries": 777, "heads": 16, "kv_heads": 1},
    "float16": {"queries": 2000, **SIXTEEN, "dtype": torch.float16},
    "small blocks": {"queries": 600, **SIXTEEN, "geometry": SMALL},
    "tiny blocks and padding": {
        "queries": 300,
        "heads": 32,
        "kv_heads": 2,
        "starts": [0, 5, 30],
        "ends": [40, 58, 330],
        "geometry": TINY,
    },
    "2 heads, a window of one": {"queries": 500, "heads": 8, "kv_heads": 4, "geometry": TINY},
    "large blocks": {"queries": 900, **SIXTEEN, "geometry": LARGE},
}


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(conditions, "PIECES", 0)  # these are small


def make(
    *,
    queries: int,
    heads: int,
    kv_heads: int,
    batch: int = 1,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
    capacity: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    geometry: BlockGeometry = GEOMETRY,
) -> tuple[Tensor, Caches, Grid]:
    """Random inputs; NaN in the queries and tokens past a row's end and in blocks that reach beyond it."""
    starts, ends = starts or [0] * batch, ends or [queries] * batch
    batch, keys = len(ends), max(ends)
    blocks = max(1, num_blocks(keys, geometry))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    q = random(batch, queries, heads, WIDTH)
    compressed = [random(batch, max(capacity, blocks) + more, kv_heads, WIDTH) for more in (5, 2)]
    # No two with the same way from one row of the batch to the next.
    tokens = [random(batch, max(capacity, keys) + more, kv_heads, WIDTH) for more in (0, 3, 8, 21)]
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        q[row, max(0, end - start) :] = torch.nan
        for x in compressed:
            x[row, num_blocks(end, geometry) :] = torch.nan
        for x in tokens:
            x[row, end:] = torch.nan
    grid = Grid(
        geometry=geometry,
        starts=torch.tensor(starts, dtype=torch.int32, device="cuda"),
        ends=torch.tensor(ends, dtype=torch.int32, device="cuda"),
        batch=batch,
        queries=queries,
        keys=keys,
        heads=heads,
        kv_heads=kv_heads,
        scale=WIDTH**-0.5,
        longest=keys,
        padded=True,
    )
    return q, Caches(*(x[:, :blocks] for x in compressed), *(x[:, :keys] for x in tokens)), grid


Pairs = tuple[tuple[Tensor, Tensor], ...]


def ours(q: Tensor, caches: Caches, grid: Grid, config: dict[str, int] | None = None) -> Pairs:
    assert serves(q, caches, grid)
    compressed = compressed_forward(q, caches.k_cmp, caches.v_cmp, grid, config=config)
    return compressed, *window_and_forced_forward(q, caches, grid, config=config)


def plain(q: Tensor, caches: Caches, grid: Grid) -> Pairs:
    return (
        compressed_forward(q, caches.k_cmp, caches.v_cmp, grid, config=PLAIN),
        window_forward(q, caches.k_win, caches.v_win, grid),
        forced_forward(q, caches.k_slc, caches.v_slc, grid),
    )


def assert_same(pairs: Pairs, expected_pairs: Pairs) -> None:
    for (out, lse), (expected, expected_lse) in zip(pairs, expected_pairs, strict=True):
        nothing = expected_lse == torch.inf
        assert torch.equal(lse == torch.inf, nothing)
        assert not out[nothing].any()
        torch.testing.assert_close(lse, expected_lse, atol=1e-4, rtol=0)
        off = (out.float() - expected.float()).norm(dim=-1)
        norms = expected.float().norm(dim=-1)
        assert (off <= 2e-2 * norms).all()
        assert off.norm() <= 5e-3 * norms.norm()


@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_the_plain_kernels(name: str) -> None:
    given = make(**CASES[name])
    assert_same(ours(*given), plain(*given))


@pytest.mark.parametrize("index", range(len(HOPPER)))
@pytest.mark.parametrize("name", ["1000 tokens", "ragged", "9001 tokens"])
def test_candidates_agree_with_the_plain_kernels(name: str, index: int) -> None:
    given = make(**CASES[name])
    assert_same(ours(*given, dict(HOPPER[index])), plain(*given))


def test_few_pieces_are_left_to_the_plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    q, caches, grid = make(**CASES["1000 tokens"])
    monkeypatch.setattr(conditions, "PIECES", 5)
    monkeypatch.setattr(conditions, "processors", lambda _: 101)  # there are 500 pieces
    assert not serves(q, caches, grid)
    monkeypatch.setattr(conditions, "processors", lambda _: 100)
    assert serves(q, caches, grid)


def test_the_whole_attention_takes_it_and_has_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    q, caches, _ = make(**CASES["ragged"])
    lengths = torch.tensor([1111, 1790], device="cuda")
    q = torch.randn_like(q)
    clean = [torch.randn_like(x) for x in caches]
    gates = torch.rand(*q.shape[:3], 3, device="cuda", dtype=q.dtype)
    start = torch.tensor([0, 700], device="cuda")
    dout = torch.randn_like(q)
    results = []
    for pieces in (0, 10**9):
        monkeypatch.setattr(conditions, "PIECES", pieces)
        leaves = [x.detach().requires_grad_() for x in (q, *clean, gates)]
        out, _ = nsa_attention(
            *leaves, geometry=GEOMETRY, start=start, lengths=lengths, backend="triton", return_blocks=True
        )
        out.backward(dout)
        results.append([out.detach(), *(x.grad for x in leaves)])
    for ours_, plain_ in zip(*results, strict=True):
        assert plain_.float().norm() > 0
        assert (ours_.float() - plain_.float()).norm() <= 1e-2 * plain_.float().norm()


@pytest.mark.parametrize("name", ["ragged", "9001 tokens", "a part of a longer cache"])
def test_every_call_gives_the_same_bits(name: str) -> None:
    given = make(**CASES[name])
    first = ours(*given)
    for _ in range(100):
        for pair, expected in zip(ours(*given), first, strict=True):
            assert torch.equal(pair[0], expected[0])
            assert torch.equal(pair[1], expected[1])


def test_queries_with_other_strides() -> None:
    q, caches, grid = make(**CASES["ragged"])
    by_head = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert_same(ours(by_head, caches, grid), ours(q, caches, grid))


def test_a_graph_replays_it() -> None:
    given = make(**CASES["1000 tokens"])
    expected = ours(*given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = ours(*given)
    for pair in replayed:
        for x in pair:
            x.zero_()
    graph.replay()
    assert_same(replayed, expected)
