"""The compressed attention's kernel for Hopper against the plain one, on a GPU (`make test-gpu`)."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from nsa_kernels import BlockGeometry, num_blocks
from nsa_kernels.triton.compressed import compressed_forward
from nsa_kernels.triton.compressed_hopper import SEARCH, serves
from nsa_kernels.triton.configs import H200
from nsa_kernels.triton.tiles import Grid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("poisoned_allocations"),
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="needs a CUDA device of capability 9.0",
    ),
]

GEOMETRY = BlockGeometry()
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
    "5 heads to a group": {"queries": 900, "heads": 10, "kv_heads": 2, "starts": [0, 0], "ends": [900, 517]},
    "1 head to a group": {"queries": 2000, "heads": 4, "kv_heads": 4},
    "64 heads to a group": {"queries": 500, "heads": 64, "kv_heads": 1},
    "one KV head": {"queries": 777, "heads": 16, "kv_heads": 1},
    "float16": {"queries": 2000, **SIXTEEN, "dtype": torch.float16},
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(
    *,
    queries: int,
    heads: int,
    kv_heads: int,
    batch: int = 1,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
    capacity: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor, Grid]:
    """Random inputs; NaN in the queries past a row's end and in compressed blocks that reach beyond it."""
    starts, ends = starts or [0] * batch, ends or [queries] * batch
    batch, keys = len(ends), max(ends)
    blocks = max(1, num_blocks(keys, GEOMETRY))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    q = random(batch, queries, heads, WIDTH)
    k, v = (random(batch, capacity or blocks, kv_heads, WIDTH) for _ in range(2))
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        q[row, max(0, end - start) :] = torch.nan
        for x in (k, v):
            x[row, num_blocks(end, GEOMETRY) :] = torch.nan
    grid = Grid(
        geometry=GEOMETRY,
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
    return q, k[:, :blocks], v[:, :blocks], grid


def assert_same(ours: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor]) -> None:
    (out, lse), (expected, expected_lse) = ours, plain
    nothing = expected_lse == torch.inf
    assert torch.equal(lse == torch.inf, nothing)
    assert not out[nothing].any()
    torch.testing.assert_close(lse, expected_lse, atol=1e-2, rtol=0)
    assert (out.float() - expected.float()).norm() <= 5e-3 * expected.float().norm()


@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_the_plain_kernel(name: str) -> None:
    q, k, v, grid = make(**CASES[name])
    assert serves(q, k, v, grid)
    assert_same(compressed_forward(q, k, v, grid), compressed_forward(q, k, v, grid, config=PLAIN))


@pytest.mark.parametrize("index", range(len(SEARCH)))
@pytest.mark.parametrize("name", ["1000 tokens", "ragged", "5 heads to a group"])
def test_candidates_agree_with_the_plain_kernel(name: str, index: int) -> None:
    q, k, v, grid = make(**CASES[name])
    ours = compressed_forward(q, k, v, grid, config=SEARCH[index])
    assert_same(ours, compressed_forward(q, k, v, grid, config=PLAIN))


def test_queries_with_any_strides() -> None:
    q, k, v, grid = make(**CASES["ragged"])
    by_head = q.transpose(1, 2).contiguous().transpose(1, 2)
    padded = torch.nn.functional.pad(q, (0, 1))[..., :WIDTH]  # rows of 258 bytes
    expected = compressed_forward(q, k, v, grid)
    for other in (by_head, padded):
        assert serves(other, k, v, grid)
        assert_same(compressed_forward(other, k, v, grid), expected)


def test_a_graph_replays_it() -> None:
    q, k, v, grid = make(**CASES["1000 tokens"])
    expected = compressed_forward(q, k, v, grid)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = compressed_forward(q, k, v, grid)
    for x in replayed:
        x.zero_()
    graph.replay()
    assert_same(replayed, expected)
