"""Triton's decode against the oracle: outputs and chosen blocks, with poison past every row's end."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

import triton
import triton.language as tl
from launch_candidates import DECODE

import nsa_kernels.triton as triton_backend
from nsa_kernels import BlockGeometry, compress_mean, num_blocks, reference
from nsa_kernels.triton.configs import H200, shipped
from nsa_kernels.triton.decode import decode
from nsa_kernels.triton.decode.choose import choose
from nsa_kernels.triton.decode.plan import Plan, plan
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
    call = make(SMALL, [221, 40], capacity=230, group=group, dim=dim, value_dim=value_dim, kv_heads=1)
    check(call)
    stream = {**shipped("decode", max(dim, value_dim), DEVICE), "stream": 1, "programs": 3}
    if DEVICE.type == "cpu":
        p = plan(SMALL, 230, 2, value_dim, group, 2, tuple(stream.items()))
        assert p.stream
        assert p.splits > 1
    check(call, config=stream)


def test_rows_of_every_length() -> None:
    check(make(SMALL, list(range(42)), capacity=43, kv_heads=1, group=1))


GRIDS = [(pieces, shares, 0) for pieces in (1, 2, 3, 4) for shares in (1, 2, 3, 4)]
STREAMS = [(pieces, shares, 1) for pieces in (1, 2, 4) for shares in (1, 2)]  # the others are not streamed


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize(("pieces", "shares", "stream"), GRIDS + STREAMS)
def test_block_grids(stride: int, pieces: int, shares: int, stream: int) -> None:
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
    config = {**shipped("decode", 16, DEVICE), "stream": stream, "programs": 2}
    check(make(geometry, lengths, capacity=54, kv_heads=1, seed=stride), config=config)


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
        {"programs": 1, "ranked": 32, "columns": 8},
        {"programs": 1000, "slots": 1, "window_keys": 32},
        {"programs": 1000, "early": 0, "merged": 64},
        {"keys": 64, "ranked": 1024, "slots": 4},
        {"stream": 1, "programs": 1},
        {"stream": 1, "programs": 12},
        {"stream": 1, "programs": 4, "keys": 64},
    ],
    ids=[
        "long runs",
        "short runs",
        "known length",
        "large tiles",
        "stream",
        "short streams",
        "large streams",
    ],
)
def test_every_configuration_gives_the_same(changes: dict[str, int]) -> None:
    geometry = BlockGeometry(block=8, stride=4, select_block=8, select_count=7, window=70)
    config = {**shipped("decode", 16, DEVICE), **changes}
    check(make(geometry, [350, 64, 0, 331], capacity=360), config=config)


@pytest.mark.parametrize("slots", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("count", [3, 7, 16])
def test_every_run_of_slots_gives_the_same(count: int, slots: int) -> None:
    geometry = BlockGeometry(block=8, stride=4, select_block=8, select_count=count, window=12)
    config = {**shipped("decode", 16, DEVICE), "slots": slots, "attend_programs": 1000}
    check(make(geometry, [200, 8 * count, 8 * count - 8, 9, 0], capacity=210, kv_heads=1), config=config)


PROGRAMS = {
    "long runs": {"programs": 1},
    "one tile a program": {"programs": 1000},
    "a stream": {"programs": 1, "stream": 1},
    "streams": {"programs": 2, "stream": 1},  # that begin behind keys of another
}
programs_vary = pytest.mark.parametrize("changes", PROGRAMS.values(), ids=PROGRAMS)


@programs_vary
def test_lengths_around_the_borders_of_blocks_and_tiles(changes: dict[str, int]) -> None:
    # Keys every 4 tokens; blocks of 8; tiles of 8 blocks: a key reaches into the tile after its own.
    block = 8 if changes.get("stream") else 12  # no longer ones in a stream
    geometry = BlockGeometry(block=block, stride=4, select_block=8, select_count=5, window=9)
    config = {**shipped("decode", 16, DEVICE), **changes}
    lengths = [border + step for border in (8, 12, 40, 64, 72, 128) for step in (-1, 0, 1)]
    check(make(geometry, lengths, capacity=200, kv_heads=1, group=1), config=config)


@pytest.mark.parametrize("length", [8200, 700])
def test_a_long_cache(length: int) -> None:
    geometry = BlockGeometry(block=1, stride=1, select_block=1, select_count=17, window=4)
    check(make(geometry, [length], capacity=8201, kv_heads=1, group=1))


@triton.jit
def choose_kernel(
    ranked, written, own, slots,
    COUNT: tl.constexpr, NB: tl.constexpr, WAYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    slot = choose(ranked, written, own, COUNT, NB, 32, WAYS, WIDTH)
    tl.store(slots + tl.arange(0, NB), slot)


@pytest.mark.parametrize(("ways", "width"), [(1, 31), (2, 15), (3, 10)])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000], ids=lambda n: f"{n} values")
def test_the_chosen_are_the_largest_and_of_equals_the_first(levels: int, ways: int, width: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    for size, count in ((256, 16), (1024, 3), (1024, 16), (1024, 29)):
        own, written = size - 3, size - 9
        importance = torch.randint(0, levels, (size,), generator=generator) / levels
        importance[written:] = 0
        slots = torch.empty(size, dtype=torch.int32, device=DEVICE)
        held = torch.full((size,), -7, dtype=torch.int32)  # what stands past `written` is not read
        held[:written] = importance[:written].view(torch.int32)
        choose_kernel[(1,)](held.to(DEVICE), written, own, slots, count, size, ways, width)
        importance[[0, own - 1, own]] = float("inf")
        best = torch.sort(importance[: own + 1], descending=True, stable=True).indices[:count].sort().values
        chosen = torch.full((size,), -1, dtype=torch.int32)
        chosen[best] = torch.arange(count, dtype=torch.int32)
        assert torch.equal(slots.cpu(), chosen)


def test_ties_go_to_the_lower_index() -> None:
    call = make(SMALL, [64, 320], capacity=330)
    call.caches.k_cmp.zero_()
    assert call.run().blocks.tolist() == [[[0, 1, 6, 7]] * 2, [[0, 1, 38, 39]] * 2]
    # Two far blocks alike, better than the rest, of which one slot can take one.
    call.caches.k_cmp[1, [30, 31, 60, 61]] = call.q[1].unflatten(0, (2, -1)).sum(1)
    call.caches.k_cmp[1, [29, 32, 59, 62]] = 0
    assert torch.equal(call.run().blocks, call.expected().blocks)
    assert call.run().blocks[1, :, 1].tolist() == [15, 15]


def test_ties_across_tiles_runs_and_the_bounds_of_the_search() -> None:
    geometry = BlockGeometry(block=8, stride=8, select_block=8, select_count=40, window=8)
    call = make(geometry, [1200, 1193, 333], capacity=1300, kv_heads=1, group=1)
    call.caches.k_cmp.zero_()
    assert torch.equal(call.run().blocks, call.expected().blocks)
    # Fewer blocks above the tie than slots, far apart.
    call.caches.k_cmp[:, [20, 21, 39, 38]] = call.q[:, None]
    assert torch.equal(call.run().blocks, call.expected().blocks)


@programs_vary
def test_a_capacity_far_beyond_the_rows(changes: dict[str, int]) -> None:
    config = {**shipped("decode", 16, DEVICE), **changes}
    check(make(SMALL, [70, 33, 3, 0, 8], capacity=600, kv_heads=1), config=config)


def test_an_empty_row_may_have_any_gates() -> None:
    call = make(SMALL, [70, 0], capacity=300)
    call.gates[1] = NAN
    assert not call.run().out[1].any()


@programs_vary
def test_a_key_of_the_halo_may_outweigh_its_tile_beyond_all_floats(changes: dict[str, int]) -> None:
    # Tiles of 8 blocks of 2 keys: key 31 counts for block 16, the first of its tile, too.
    geometry = BlockGeometry(block=8, stride=4, select_block=8, select_count=5, window=12)
    call = make(geometry, [321], capacity=330, kv_heads=1, group=1)
    call.caches.k_cmp.mul_(0.01)
    call.caches.k_cmp[:, 31] = 500 * call.q / call.q.square().sum(-1, keepdim=True)
    config = {**shipped("decode", 16, DEVICE), **changes}
    check(call, config=config)
    assert call.run(config=config).blocks[0, 0].tolist() == [0, 15, 16, 39, 40]


@pytest.mark.parametrize("pairs", [1, 4, 8, 64, 512])
@pytest.mark.parametrize("size", [0, 31, 8192, 65536, 1 << 20])
def test_plans_cover_the_cache(size: int, pairs: int) -> None:
    geometry = BlockGeometry()
    for config in DECODE:
        p = plan(geometry, size, pairs, 128, 16, 132, tuple(config.items()))
        assert p.splits * p.tile_run >= p.tiles
        assert p.tiles * p.tile_blocks >= num_blocks(size, geometry) / p.pieces
        assert p.ranked >= p.tiles * p.tile_blocks
        assert p.window_splits * p.window_run * config["window_keys"] >= min(size, geometry.window)
        assert p.runs * p.slots >= geometry.select_count
        assert p.slices * p.columns >= 128


def test_the_shipped_configuration_follows_what_there_is_to_read() -> None:
    geometry, few, many = BlockGeometry(), H200["decode"][128], H200["decode_many"][128]

    def planned(size: int, pairs: int, config: Mapping[str, int]) -> Plan:
        return plan(geometry, size, pairs, 128, 16, 132, tuple(config.items()))

    assert planned(8192, 4, few).tile_blocks * 2 == planned(65536, 4, few).tile_blocks == 32
    assert not planned(131072, 4, few).stream
    assert (
        planned(65536, 64, many).tile_run == 22
    )  # three programs to a pair and one for the window: 256 of 264
    wide = BlockGeometry(block=4, stride=4, select_block=1024, select_count=16, window=512)
    assert not plan(wide, 65536, 64, 128, 16, 132, tuple(many.items())).stream


@pytest.mark.parametrize("pairs", [64, 100, 128, 136, 200, 264, 300, 512, 1000])
@pytest.mark.parametrize("size", [65536, 131072])
def test_streams_leave_few_processors_idle(size: int, pairs: int) -> None:
    config, geometry, count = H200["decode_many"][128], BlockGeometry(), 132
    p = plan(geometry, size, pairs, 128, 16, count, tuple(config.items()))
    assert p.stream
    at_once = config["programs"] * count
    rounds = triton.cdiv((p.splits + p.window_splits) * pairs, at_once)
    window_tiles = geometry.window // config["window_keys"]
    assert rounds * p.tile_run <= 1.35 * (p.tiles + window_tiles) * pairs / at_once


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
