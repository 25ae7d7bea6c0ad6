"""Triton's decode against the oracle: outputs and chosen blocks, with poison past every row's end."""

import os
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

import nsa_kernels.triton as triton_backend
from nsa_kernels import BlockGeometry, compress_mean, num_blocks, reference
from nsa_kernels.triton.configs import config as shipped_config
from nsa_kernels.triton.decode import decode
from nsa_kernels.types import Caches, NSAOutput

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = BlockGeometry(block=8, stride=4, select_block=8, select_count=4, window=12)
NAN = float("nan")


@dataclass
class Call:
    """Arguments of a decode; the compressed keys are means of the selected branch's."""

    q: Tensor
    caches: Caches
    gates: Tensor
    geometry: BlockGeometry
    lengths: Tensor

    def run(self, function=decode, **kwargs) -> NSAOutput:
        return function(
            self.q,
            self.caches,
            self.gates,
            geometry=self.geometry,
            lengths=self.lengths,
            scale=self.q.shape[-1] ** -0.5,
            return_blocks=True,
            **kwargs,
        )

    def expected(self) -> NSAOutput:
        caches = Caches(*(x.double() for x in self.caches))
        exact = Call(self.q.double(), caches, self.gates.double(), self.geometry, self.lengths)
        return exact.run(reference.decode)

    def poison(self) -> None:
        """NaN wherever a row has no token or no complete block."""
        for row, length in enumerate(self.lengths.tolist()):
            for name, cache in self.caches._asdict().items():
                cache[row, num_blocks(length, self.geometry) if name.endswith("cmp") else length :] = NAN


def make(
    geometry: BlockGeometry,
    lengths: list[int],
    *,
    capacity: int,
    kv_heads: int = 2,
    group: int = 2,
    dim: int = 16,
    value_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Call:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    batch = len(lengths)
    k_slc, k_win = random(batch, capacity, kv_heads, dim), random(batch, capacity, kv_heads, dim)
    v_slc, v_win = random(batch, capacity, kv_heads, value_dim), random(batch, capacity, kv_heads, value_dim)
    k_cmp = compress_mean(k_slc, geometry) * geometry.block**0.5  # so that scores differ as for plain keys
    caches = (k_cmp, compress_mean(v_slc, geometry), k_slc, v_slc, k_win, v_win)
    q = 2 * random(batch, kv_heads * group, dim)
    gates = random(batch, kv_heads * group, 3).sigmoid()
    call = Call(
        q.to(DEVICE, dtype),
        Caches(*(x.to(DEVICE, dtype) for x in caches)),
        gates.to(DEVICE, dtype),
        geometry,
        torch.tensor(lengths, device=DEVICE),
    )
    call.poison()
    return call


def check(call: Call, tolerance: float = 1e-5, **kwargs) -> None:
    out, blocks = call.run(**kwargs)
    expected = call.expected()
    assert torch.equal(blocks, expected.blocks)
    error = (out.double() - expected.out).abs().max().item()
    assert error < tolerance


@pytest.mark.parametrize("group", [1, 2, 5, 16, 20])
@pytest.mark.parametrize(("dim", "value_dim"), [(16, 32), (32, 16), (192, 128), (4, 7)])
def test_heads_and_widths(group: int, dim: int, value_dim: int) -> None:
    check(make(SMALL, [61, 40], capacity=70, group=group, dim=dim, value_dim=value_dim, kv_heads=1))


def test_rows_of_every_length() -> None:
    check(make(SMALL, list(range(42)), capacity=43, kv_heads=1, group=1))


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("shares", [1, 2, 3, 4])
@pytest.mark.parametrize("pieces", [1, 2, 3, 4])
def test_block_grids(stride: int, shares: int, pieces: int) -> None:
    geometry = BlockGeometry(
        block=shares * stride, stride=stride, select_block=pieces * stride, select_count=5, window=21
    )
    lengths = [
        geometry.block - 1,
        geometry.block,
        3 * geometry.select_block,
        3 * geometry.select_block + 1,
        53,
    ]
    check(make(geometry, lengths, capacity=54, kv_heads=1, seed=stride))


@pytest.mark.parametrize(
    "geometry",
    [
        BlockGeometry(block=4, stride=4, select_block=48, select_count=3, window=1),
        BlockGeometry(block=24, stride=2, select_block=2, select_count=6, window=300),
        BlockGeometry(block=1, stride=1, select_block=160, select_count=3, window=33),
    ],
    ids=["wide blocks", "keys over many blocks", "blocks wider than a tile"],
)
def test_uncommon_geometries(geometry: BlockGeometry) -> None:
    check(make(geometry, [330, 161, 2], capacity=350, kv_heads=1))


@pytest.mark.parametrize(
    "changes",
    [
        {"programs": 1, "blocks": 16, "columns": 8},
        {"programs": 1000, "slots": 1, "window_keys": 32},
        {"keys": 64, "blocks": 128, "slots": 4},
    ],
    ids=["long runs", "short runs", "large tiles"],
)
def test_every_configuration_gives_the_same(changes: dict[str, int]) -> None:
    geometry = BlockGeometry(block=8, stride=4, select_block=8, select_count=7, window=70)
    config = {**shipped_config("decode", 16, DEVICE), **changes}
    check(make(geometry, [350, 64, 0, 331], capacity=360), config=config)


def test_a_cache_so_long_that_candidates_are_ranked_in_pieces() -> None:
    geometry = BlockGeometry(block=1, stride=1, select_block=1, select_count=17, window=4)
    check(make(geometry, [4200, 2049], capacity=4201, kv_heads=1))


def test_ties_go_to_the_lower_index() -> None:
    call = make(SMALL, [64, 320], capacity=330)
    call.caches.k_cmp.zero_()
    assert call.run().blocks.tolist() == [[[0, 1, 6, 7]] * 2, [[0, 1, 38, 39]] * 2]
    # Two far blocks alike, better than the rest, of which one slot can take one.
    call.caches.k_cmp[1, [30, 31, 60, 61]] = call.q[1].unflatten(0, (2, -1)).sum(1)
    call.caches.k_cmp[1, [29, 32, 59, 62]] = 0
    assert torch.equal(call.run().blocks, call.expected().blocks)
    assert call.run().blocks[1, :, 1].tolist() == [15, 15]


def test_repeated_calls_are_the_same_to_the_bit() -> None:
    call = make(SMALL, [60, 33, 0], capacity=64, kv_heads=1)
    first = call.run()
    for _ in range(3):
        again = call.run()
        assert torch.equal(again.out, first.out)
        assert torch.equal(again.blocks, first.blocks)


def test_blocks_only_where_asked_for() -> None:
    call = make(SMALL, [50], capacity=50)
    out, blocks = decode(
        call.q, call.caches, call.gates, geometry=SMALL, lengths=call.lengths, scale=0.25, return_blocks=False
    )
    assert blocks is None
    assert torch.isfinite(out).all()


def test_strided_inputs() -> None:
    call = make(SMALL, [50, 31], capacity=50)
    expected = call.run()
    call.caches = Caches(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in call.caches))
    call.q = call.q.repeat_interleave(2, -1)[..., ::2]
    call.gates = call.gates.transpose(1, 2).contiguous().transpose(1, 2)
    call.lengths = call.lengths.int()
    out, blocks = call.run()
    assert torch.equal(out, expected.out)
    assert torch.equal(blocks, expected.blocks)


def test_half_precision() -> None:
    check(make(SMALL, [121, 50], capacity=130, dtype=torch.float16), tolerance=5e-3)


def test_the_backend_takes_prefill_only_for_gradients() -> None:
    call = make(SMALL, [20, 9], capacity=20, kv_heads=1)
    plain = call.run(triton_backend.decode)
    assert torch.equal(plain.out, call.run().out)
    call.q.requires_grad_()
    out, blocks = call.run(triton_backend.decode)
    assert torch.equal(blocks, plain.blocks)
    torch.testing.assert_close(out.detach(), plain.out, rtol=1e-5, atol=1e-5)
    out.sum().backward()
    assert call.q.grad.isfinite().all()
    assert call.q.grad.any()
    with torch.no_grad():
        assert torch.equal(call.run(triton_backend.decode).out, plain.out)


def test_no_rows() -> None:
    call = make(SMALL, [], capacity=50)
    out, blocks = call.run()
    assert out.shape == (0, 4, 16)
    assert blocks.shape == (0, 2, 4)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs CUDA")
@pytest.mark.parametrize("batch", [1, 16])
def test_a_graph_follows_the_lengths(batch: int) -> None:
    """One captured graph, replayed as the rows grow, gives what the oracle gives for each length."""
    lengths = torch.randint(1, 4000, (batch,)).tolist()
    size = {"capacity": 4096, "group": 16, "dim": 128, "value_dim": 128}
    call = make(BlockGeometry(), [4096] * batch, dtype=torch.bfloat16, **size)
    call.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, blocks = call.run()
    for step in range(4):
        call.lengths.copy_(torch.tensor(lengths) + 16 * step)
        graph.replay()
        expected = call.expected()
        assert torch.equal(blocks, expected.blocks)
        error = (out.double() - expected.out).norm() / expected.out.norm()
        assert error < 1e-2
