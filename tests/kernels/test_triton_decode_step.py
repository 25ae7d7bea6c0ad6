"""A token's step on Triton against its twin: append, compress with torch, decode by the oracle."""

import os
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import BlockGeometry, num_blocks, reference
from nsa_kernels.triton import NewToken, Phi, StepCaches, decode_step
from nsa_kernels.triton.configs import config as shipped_config
from nsa_kernels.types import Caches, NSAOutput

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = BlockGeometry(block=8, stride=4, select_block=8, select_count=4, window=12)
NAN = float("nan")
# No token; fewer than a block; the first block's last token; between blocks; a later block's last.
PHASES = [0, 3, 8, 18, 28]


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def make_phi(
    kind: str,
    geometry: BlockGeometry,
    width: int,
    *,
    pe: bool,
    bias: bool,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Phi:
    """phi with weights of such a size that what it gives is about as large as a token's own keys."""
    generator = torch.Generator().manual_seed(seed)
    whole, hidden = geometry.block * width, 53
    weights = {"pe": random(generator, geometry.block, width) if pe else None}
    if kind == "linear":
        weights["weight"] = random(generator, width, whole) / whole**0.5
        weights["bias"] = random(generator, width) if bias else None
    elif kind == "mlp":
        weights["weight"] = 2 * random(generator, hidden, whole) / whole**0.5
        weights["weight_out"] = random(generator, width, hidden) / hidden**0.5
        weights["bias"] = random(generator, hidden) if bias else None
        weights["bias_out"] = random(generator, width) if bias else None
    return Phi(kind=kind, **{name: None if w is None else w.to(dtype) for name, w in weights.items()})


def tables(positions: int, width: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(positions)[:, None] * 100.0 ** (-torch.arange(width // 2) / (width // 2))
    angles = torch.cat((angles, angles), dim=-1).to(DEVICE)
    return angles.cos(), angles.sin()


@dataclass
class Rows:
    """Rows of a batch that grow token by token, with NaN past their ends, and their twin."""

    lengths: list[int]
    phi_k: Phi
    phi_v: Phi
    geometry: BlockGeometry = SMALL
    rotary: bool = True
    capacity: int = 44
    kv_heads: int = 2
    group: int = 2
    dim: int = 8
    value_dim: int = 8
    dtype: torch.dtype = torch.float32
    shared: bool = False
    config: dict[str, int] | None = None
    decode_config: dict[str, int] | None = None
    caches: StepCaches = field(init=False)
    twin: StepCaches = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)
        self.rotary = tables(self.capacity, self.dim) if self.rotary else None
        blocks = num_blocks(self.capacity, self.geometry)

        def empty(count: int, width: int) -> Tensor:
            shape = (len(self.lengths), count, self.kv_heads, width)
            return torch.full(shape, NAN, dtype=self.dtype, device=DEVICE)

        keys = [empty(self.capacity, self.dim) for _ in range(3)]
        values = [empty(self.capacity, self.value_dim) for _ in range(3)]
        for caches in (keys, values):
            for cache in caches:
                for row, length in enumerate(self.lengths):
                    before = cache[row, : max(0, length - 1)]
                    before.copy_(random(self.generator, *before.shape))
        self.twin = StepCaches(
            keys[0],
            values[0],
            empty(blocks, self.dim),
            empty(blocks, self.value_dim),
            *(cache for pair in zip(keys[1:], values[1:], strict=True) for cache in pair),
        )
        if self.shared:
            self.twin = self._share(self.twin)
        for row, length in enumerate(self.lengths):
            for block in range(num_blocks(max(0, length - 1), self.geometry)):
                self.compress(row, block)
        copies = StepCaches(*(cache.clone() for cache in self.twin))
        self.caches = self._share(copies) if self.shared else copies

    @staticmethod
    def _share(caches: StepCaches) -> StepCaches:
        """One K/V for all branches, phi's included."""
        kept = {"k_cmp": caches.k_cmp, "v_cmp": caches.v_cmp}
        one = {name: caches.k_raw if name[0] == "k" else caches.v_raw for name in caches._fields}
        return StepCaches(**{**one, **kept})

    def compress(self, row: int, block: int) -> None:
        """Puts one block into the twin's compressed caches."""
        first = block * self.geometry.stride
        tokens = slice(first, first + self.geometry.block)
        raw = [cache[row : row + 1, tokens] for cache in (self.twin.k_raw, self.twin.v_raw)]
        key, value = (
            phi.compress(x, self.geometry, backend="torch")[0, 0]
            for phi, x in zip((self.phi_k, self.phi_v), raw, strict=True)
        )
        if self.rotary is not None:
            cos, sin = (table[first] for table in self.rotary)
            low, high = key.chunk(2, -1)
            key = (key * cos + torch.cat((-high, low), -1) * sin).to(key.dtype)
        self.twin.k_cmp[row, block], self.twin.v_cmp[row, block] = key, value

    def step(self) -> tuple[NSAOutput, NSAOutput]:
        """One token to each row that has any: the step's result and the twin's."""
        batch, generator = len(self.lengths), self.generator
        shape = (batch, self.kv_heads)
        keys = [random(generator, *shape, self.dim, dtype=self.dtype) for _ in range(3)]
        values = [random(generator, *shape, self.value_dim, dtype=self.dtype) for _ in range(3)]
        if self.shared:
            keys, values = keys[:1] * 3, values[:1] * 3
        new = NewToken(*(vector for pair in zip(keys, values, strict=True) for vector in pair))
        q = 2 * random(generator, batch, self.kv_heads * self.group, self.dim, dtype=self.dtype)
        gates = random(generator, batch, self.kv_heads * self.group, 3, dtype=self.dtype).sigmoid()
        lengths = torch.tensor(self.lengths, device=DEVICE)
        arguments = {
            "geometry": self.geometry,
            "lengths": lengths,
            "scale": self.dim**-0.5,
            "return_blocks": True,
        }
        ours = decode_step(
            q,
            new,
            self.caches,
            gates,
            phi_k=self.phi_k,
            phi_v=self.phi_v,
            rotary=self.rotary,
            config=self.decode_config,
            phi_config=self.config,
            **arguments,
        )
        for row, length in enumerate(self.lengths):
            if length:
                for name, vector in new._asdict().items():
                    getattr(self.twin, name)[row, length - 1] = vector[row]
                if num_blocks(length, self.geometry) > num_blocks(length - 1, self.geometry):
                    self.compress(row, num_blocks(length, self.geometry) - 1)
        exact = Caches(*(getattr(self.twin, name).double() for name in Caches._fields))
        twin = reference.decode(q.double(), exact, gates.double(), **arguments)
        self.lengths = [length + 1 if length else 0 for length in self.lengths]
        return ours, twin

    def check(self, steps: int, tolerance: float = 1e-5) -> None:
        for _ in range(steps):
            ours, expected = self.step()
            assert torch.equal(ours.blocks, expected.blocks)
            assert (ours.out.double() - expected.out).abs().max().item() < tolerance
            for name, cache in self.caches._asdict().items():
                twin, slack = getattr(self.twin, name), tolerance if name.endswith("cmp") else 0
                torch.testing.assert_close(cache, twin, rtol=slack, atol=slack, equal_nan=True)


def rows(kind: str, lengths: list[int], *, pe: bool = True, bias: bool = True, **sizes) -> Rows:
    geometry, dtype = sizes.get("geometry", SMALL), sizes.get("dtype", torch.float32)
    phi_k, phi_v = (
        make_phi(kind, geometry, sizes.get(name, 8), pe=pe, bias=bias, seed=seed, dtype=dtype)
        for seed, name in enumerate(("dim", "value_dim"))
    )
    return Rows(lengths, phi_k, phi_v, **sizes)


@pytest.mark.parametrize("rotary", [False, True], ids=["plain", "rotary"])
@pytest.mark.parametrize("pe", [False, True], ids=["", "pe"])
@pytest.mark.parametrize("kind", ["mean", "linear", "mlp"])
def test_rows_at_every_phase(kind: str, pe: bool, rotary: bool) -> None:
    rows(kind, PHASES, pe=pe, bias=pe, rotary=rotary, kv_heads=1, group=1).check(2)


@pytest.mark.parametrize("shares", [1, 2, 3])
@pytest.mark.parametrize("kind", ["mean", "linear", "mlp"])
def test_many_steps_over_overlapping_blocks(kind: str, shares: int) -> None:
    # With 3 shares a key reaches beyond the blocks that are always selected.
    geometry = BlockGeometry(
        block=2 * shares, stride=2, select_block=2 if shares == 3 else 4, select_count=4, window=5
    )
    rows(kind, [2, 20], geometry=geometry, capacity=26, kv_heads=1, group=1).check(5)


@pytest.mark.parametrize(
    "changes",
    [{"programs": 1}, {"programs": 1000}, {"programs": 1, "stream": 1}, {"programs": 3, "stream": 1}],
    ids=["long runs", "one tile a program", "a stream", "streams"],
)
@pytest.mark.parametrize("dim", [8, 16])
def test_fresh_keys_beside_full_splits(dim: int, changes: dict[str, int]) -> None:
    # Tiles of 8 blocks of 2 keys: the fresh key is a tile's first, another's last, and the very first.
    config = {**shipped_config("decode", dim, DEVICE), **changes, "slots": 2}
    lengths = [8, 64 + 8, 64 + 4, 132]
    sizes = {"capacity": 140, "kv_heads": 1, "group": 1, "dim": dim, "value_dim": dim}
    rows("mean", lengths, decode_config=config, **sizes).check(2)


def test_different_phis_and_widths() -> None:
    phi_k = make_phi("mlp", SMALL, 20, pe=True, bias=True, seed=3)
    phi_v = make_phi("mean", SMALL, 7, pe=False, bias=False, seed=4)
    Rows([28, 8], phi_k, phi_v, group=3, dim=20, value_dim=7).check(1)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("programs", [1, 100])
def test_every_cut_of_the_weights_gives_the_same(kind: str, programs: int) -> None:
    config = {"units": 16, "elements": 64, "stages": 3, "programs": programs}
    rows(kind, [28, 12], config=config, kv_heads=3, dim=36, value_dim=50).check(1)


@pytest.mark.parametrize("kind", ["mean", "linear"])
def test_one_buffer_for_all_branches(kind: str) -> None:
    rows(kind, [27, 8, 11], shared=True, rotary=False).check(2)


def test_half_precision() -> None:
    rows("linear", [28, 8], dtype=torch.float16).check(1, tolerance=1e-2)


def test_strided_inputs_and_a_last_token_that_fills_the_cache() -> None:
    call = rows("linear", [44, 24], capacity=44)
    call.caches = StepCaches(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in call.caches))
    call.check(1)


def test_weights_that_do_not_fit_are_named() -> None:
    call = rows("linear", [28])
    call.phi_k = make_phi("linear", SMALL, 9, pe=False, bias=False, seed=0)
    with pytest.raises(ValueError, match=r"weight of phi linear must be \[8, 64\].*got \[9, 72\]"):
        call.step()
    call.phi_k = Phi(kind="mean", bias=torch.zeros(8))
    with pytest.raises(ValueError, match="phi mean takes no bias"):
        call.step()
    call.phi_k = Phi(kind="mlp")
    with pytest.raises(ValueError, match="phi mlp needs weight"):
        call.step()


def test_a_cache_that_cannot_be_written_in_place_is_named() -> None:
    call = rows("mean", [28])
    call.caches = call.caches._replace(k_win=torch.zeros(1, 44, 2, 16, device=DEVICE)[..., ::2])
    with pytest.raises(ValueError, match="k_win is written in place"):
        call.step()


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs CUDA")
@pytest.mark.parametrize("kind", ["mean", "linear", "mlp"])
def test_a_graph_holds_the_whole_step(kind: str) -> None:
    """One captured graph, replayed as rows of different phases grow past several blocks."""
    sizes = {"geometry": BlockGeometry(), "capacity": 2048, "dim": 128, "value_dim": 128, "group": 16}
    call = rows(kind, [1000, 40, 1], dtype=torch.bfloat16, **sizes)
    batch, heads = 3, 2
    q, gates = torch.zeros(batch, 32, 128), torch.full((batch, 32, 3), 0.5)
    q, gates = (x.to(DEVICE, torch.bfloat16) for x in (q, gates))
    new = NewToken(*(torch.zeros(batch, heads, 128, device=DEVICE, dtype=torch.bfloat16) for _ in range(6)))
    lengths = torch.tensor(call.lengths, device=DEVICE)

    def step() -> NSAOutput:
        return decode_step(
            q,
            new,
            call.caches,
            gates,
            phi_k=call.phi_k,
            phi_v=call.phi_v,
            rotary=call.rotary,
            geometry=call.geometry,
            lengths=lengths,
            scale=128**-0.5,
            return_blocks=True,
        )

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    eager = StepCaches(*(cache.clone() for cache in call.caches))
    for _ in range(40):
        q.normal_()
        for vector in new:
            vector.normal_()
        graph.replay()
        call.caches, held = eager, call.caches
        expected = step()
        call.caches = held
        assert torch.equal(replayed.out, expected.out)
        assert torch.equal(replayed.blocks, expected.blocks)
        lengths += 1
    for one, other in zip(call.caches, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
