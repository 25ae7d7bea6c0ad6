"""The triton backend at real sizes on a CUDA device, against the torch backend in float32 (`make test-gpu`).

Inputs are new in each run. A failing test shows the seed in its captured output; put it into `SEED` to get
the same inputs again.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from launch_candidates import DECODE

from nsa_kernels import BlockGeometry, compress_mean, nsa_attention, nsa_decode, num_blocks, reference
from nsa_kernels.triton import configs
from nsa_kernels.triton.decode import decode as triton_decode
from nsa_kernels.types import Caches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
SEED = int.from_bytes(os.urandom(4), "big")
ROOT = Path(__file__).parents[2]
Poison = Callable[[], AbstractContextManager[None]]
NAMES = ("q", *Caches._fields, "gates")
GEOMETRY = BlockGeometry()
SIXTEEN = {"heads": 64, "kv_heads": 4, "dim": 128}
FOUR = {"heads": 8, "kv_heads": 2, "dim": 64}

CASES = {
    "16 heads to a group": {"queries": 4096, **SIXTEEN},
    "pieces enough for a persistent kernel": {"queries": 5000, **SIXTEEN},
    "float16": {"queries": 2048, **SIXTEEN, "dtype": torch.float16},
    "5 heads to a group": {"queries": 2500, "heads": 10, "kv_heads": 2, "dim": 32},
    "1 head to a group": {"queries": 2000, "heads": 4, "kv_heads": 4, "dim": 64},
    "wide keys": {"queries": 2048, "heads": 16, "kv_heads": 1, "dim": 192, "value_dim": 128},
    "ragged lengths": {"queries": 3000, **FOUR, "batch": 2, "lengths": [3000, 777]},
    "a chunk against a cache": {"queries": 500, "start": 3501, **FOUR},
    "ragged starts": {
        "queries": 300,
        **FOUR,
        "batch": 4,
        "start": [0, 2900, 1234, 40],
        "lengths": [300, 3100, 1534, 0],
    },
    "one token": {"queries": 1, **FOUR},
    "a token short of a block": {"queries": 31, **FOUR},
    "a token more than a block": {"queries": 33, **FOUR},
    "all blocks chosen": {"queries": 1023, **FOUR},
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    print(f"SEED = {SEED}")
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Case:
    """Arguments of `nsa_attention`: q, the six caches and the gates in order, and the keywords."""

    tensors: tuple[Tensor, ...]
    start: int | Tensor = 0
    lengths: Tensor | None = None

    def exact(self) -> "Case":
        return replace(self, tensors=tuple(x.float() for x in self.tensors))

    def leaves(self) -> "Case":
        return replace(self, tensors=tuple(x.detach().requires_grad_() for x in self.tensors))

    def run(self, backend: str) -> tuple[Tensor, Tensor]:
        return nsa_attention(
            *self.tensors,
            geometry=GEOMETRY,
            start=self.start,
            lengths=self.lengths,
            backend=backend,
            return_blocks=True,
        )

    def queries(self, first: int, last: int) -> "Case":
        """The same with some of the queries alone; for rows that start at one position."""
        q, *caches, gates = self.tensors
        return replace(
            self, tensors=(q[:, first:last], *caches, gates[:, first:last]), start=self.start + first
        )

    def first_positions(self) -> list[int]:
        batch = self.tensors[0].shape[0]
        return self.start.tolist() if isinstance(self.start, Tensor) else [self.start] * batch

    def padding(self) -> Tensor:
        """bool [B, N]: the query stands past the end of its row."""
        count = self.tensors[0].shape[1]
        starts = torch.tensor(self.first_positions(), device=DEVICE)
        positions = starts[:, None] + torch.arange(count, device=DEVICE)
        ends = torch.full_like(starts, self.tensors[3].shape[1]) if self.lengths is None else self.lengths
        return positions >= ends[:, None]

    def poisoned(self) -> "Case":
        """NaN in everything past each row's end, and in compressed blocks that reach beyond it."""
        if self.lengths is None:
            return self
        q, *caches, gates = tensors = tuple(x.clone() for x in self.tensors)
        q[self.padding()] = math.nan
        gates[self.padding()] = math.nan
        poison_caches(Caches(*caches), self.lengths.tolist())
        return replace(self, tensors=tensors)


def poison_caches(caches: Caches, lengths: list[int]) -> None:
    for row, length in enumerate(lengths):
        for name, cache in caches._asdict().items():
            cache[row, num_blocks(length, GEOMETRY) if name.endswith("cmp") else length :] = math.nan


def draw(
    *,
    queries: int,
    heads: int,
    kv_heads: int,
    dim: int,
    value_dim: int | None = None,
    batch: int = 1,
    start: int | list[int] = 0,
    lengths: list[int] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Case:
    """Random inputs; the compressed keys are means of the selected branch's."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=dtype)

    def compressed(x: Tensor, factor: float) -> Tensor:
        return (compress_mean(x.float(), GEOMETRY, backend="torch") * factor).to(dtype)

    size = queries + (start if isinstance(start, int) else max(start))
    value_dim = value_dim or dim
    k_slc, k_win = random(batch, size, kv_heads, dim), random(batch, size, kv_heads, dim)
    v_slc, v_win = random(batch, size, kv_heads, value_dim), random(batch, size, kv_heads, value_dim)
    tensors = (
        random(batch, queries, heads, dim).mul_(2),
        compressed(k_slc, GEOMETRY.block**0.5),  # so that scores differ as for plain keys
        compressed(v_slc, 1.0),
        k_slc,
        v_slc,
        k_win,
        v_win,
        random(batch, queries, heads, 3).sigmoid_(),
    )
    return Case(
        tensors,
        start if isinstance(start, int) else torch.tensor(start, device=DEVICE),
        None if lengths is None else torch.tensor(lengths, device=DEVICE),
    )


def error(ours: Tensor, theirs: Tensor) -> float:
    """Distance relative to the norm, or to entries of 1e-3 where only rounding is left; NaN for NaN."""
    scale = max(theirs.double().norm().item(), 1e-3 * math.sqrt(theirs.numel()), 1e-30)
    return (ours.double() - theirs.double()).norm().item() / scale


def agreement(case: Case, blocks: Tensor, expected: Tensor) -> Tensor:
    """Checks the choice of blocks.

    Nearly all are the same, and those that are not tie within rounding, which float64 decides.

    Returns:
        bool [B, N, H, 1]: the head's blocks are the same.
    """
    assert blocks.dtype == torch.int32
    same = (blocks == expected).all(-1)
    exchanged = 0
    for b, i, h in (~same).nonzero().tolist():
        ours, theirs = set(blocks[b, i, h].tolist()), set(expected[b, i, h].tolist())
        assert len(ours) == len(theirs), (b, i, h)
        assert blocks[b, i, h].tolist() == sorted(ours - {-1}) + [-1] * blocks[b, i, h].eq(-1).sum().item()
        exchanged += len(ours - theirs)
        assert exchanged <= max(2, 1e-4 * blocks.numel()), f"{exchanged} of {blocks.numel()} differ"
        if exchanged <= 16:
            importance = importances(case, b, i, h)
            values = [importance[j] for j in ours ^ theirs]
            assert max(values) - min(values) <= 1e-5 * max(values), (b, i, h, ours ^ theirs, values)
    group = case.tensors[0].shape[2] // blocks.shape[2]
    return same.repeat_interleave(group, 2).unsqueeze(-1)


def importances(case: Case, b: int, i: int, h: int) -> list[float]:
    """Importance of every block for one query of one group, in float64."""
    q, k = case.tensors[0], case.tensors[1]
    group = q.shape[2] // k.shape[2]
    t = case.first_positions()[b] + i
    keys = k[b, : num_blocks(t + 1, GEOMETRY), h].double()
    scores = q[b, i, h * group : (h + 1) * group].double() @ keys.T * q.shape[-1] ** -0.5
    p = scores.softmax(-1).sum(0).tolist()
    return reference.importance(p, t // GEOMETRY.select_block + 1, GEOMETRY)


def with_packages() -> dict[str, str]:
    """The environment of a process that imports our packages, and this file: the tuners' candidates too."""
    path = os.pathsep.join(
        [str(ROOT / "kernels"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    )
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture(scope="module")
def _compiled() -> None:
    """Fills Triton's cache on disk for all cases side by side: compiling takes longest."""
    commands = [[sys.executable, __file__, name] for name in CASES]
    processes = [subprocess.Popen(command, env=with_packages()) for command in commands]
    ended = [process.wait() for process in processes]
    # What goes wrong in one goes wrong again where it is tested; in all of them, it is this.
    assert 0 in ended


def few_heads(arguments: dict) -> bool:
    """Whether a group leaves rows of the smallest product empty, and a head is narrow: `masked` may serve."""
    return arguments["heads"] // arguments["kv_heads"] < 16 and arguments["dim"] <= 64


def compile_case(name: str) -> None:
    for rates in (configs.MASKED, {}):
        configs.MASKED = rates
        case = draw(**CASES[name]).leaves()
        case.run("triton")[0].sum().backward()


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("masked", [True, False], ids=["as served", "gathered"])
@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_agrees_with_the_torch_backend(
    arguments: dict, masked: bool, poisoned: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not masked:
        if not few_heads(arguments) or configs.masked_rates(torch.device(DEVICE)) is None:
            pytest.skip("the masked kernels don't serve it: it is gathered as served")
        monkeypatch.setattr(configs, "MASKED", {})
    case = draw(**arguments)
    ours, theirs = case.poisoned().leaves(), case.exact().leaves()
    with poisoned():
        out, blocks = ours.run("triton")
    expected, expected_blocks = theirs.run("torch")
    same = agreement(case, blocks, expected_blocks)
    padding = case.padding()
    assert (blocks[padding] == -1).all()
    assert (out[padding] == 0).all()
    assert out.dtype == case.tensors[0].dtype
    assert error((out * same).detach(), (expected * same).detach()) <= 1e-2

    # Queries with other blocks have other gradients: they get none.
    dout = torch.randn_like(out) * same
    expected.backward(dout.float())
    dout[padding] = math.nan
    with poisoned():
        out.backward(dout)
    for name, a, b in zip(NAMES, ours.tensors, theirs.tensors, strict=True):
        if b.numel():
            b.grad = torch.zeros_like(b) if b.grad is None else b.grad
            assert a.grad.dtype == a.dtype
            assert error(a.grad, b.grad) <= 1e-2, name


def test_without_gradients_and_repeated(poisoned: Poison) -> None:
    """Blocks and output are the same to the bit; gradients add up in any order."""
    case = draw(**CASES["ragged lengths"]).poisoned()
    with torch.no_grad(), poisoned():
        plain, plain_blocks = case.run("triton")
    dout = torch.randn_like(plain)
    outputs, gradients = [], []
    for _ in range(2):
        leaves = case.leaves()
        with poisoned():
            out, blocks = leaves.run("triton")
            out.backward(dout)
        assert torch.equal(blocks, plain_blocks)
        assert error(out.detach(), plain) <= 1e-3  # compiled without what keeps results for gradients
        outputs.append(out.detach())
        gradients.append([x.grad for x in leaves.tensors])
    assert torch.equal(*outputs)
    for name, a, b in zip(NAMES, *gradients, strict=True):
        assert error(a, b) <= 2e-3, name


def test_more_than_32_bits_of_elements(poisoned: Poison) -> None:
    """Queries before, at and past the 2^31th element: outputs, blocks, and gradients of the last."""
    count, last = 270_000, 64
    case = draw(queries=count, **SIXTEEN)
    limit = (1 << 31) // (64 * 128)
    assert limit + last < count - last
    ours = case.leaves()
    with poisoned():
        out, blocks = ours.run("triton")
    for first in (2000, limit - 32):
        some = case.queries(first, first + last)
        with torch.no_grad():
            expected, expected_blocks = some.exact().run("torch")
        same = agreement(some, blocks[:, first : first + last], expected_blocks)
        assert error(out.detach()[:, first : first + last] * same, expected * same) <= 1e-2

    tail = case.queries(count - last, count)
    theirs = tail.exact().leaves()
    expected, expected_blocks = theirs.run("torch")
    same = agreement(tail, blocks[:, -last:], expected_blocks)
    assert error(out.detach()[:, -last:] * same, expected.detach() * same) <= 1e-2
    dout = torch.zeros_like(out)
    dout[:, -last:] = torch.randn_like(dout[:, -last:]) * same
    expected.backward(dout[:, -last:].float())
    with poisoned():
        out.backward(dout)
    for name, a, b in zip(NAMES, ours.tensors, theirs.tensors, strict=True):
        grad = a.grad
        if name in ("q", "gates"):
            assert not grad[:, :-last].any(), name
            grad = grad[:, -last:]
        # Those of the caches are small: each of many tokens has a small share in 64 queries.
        assert (grad.float() - b.grad).norm() <= 1e-2 * b.grad.norm(), name


def test_every_candidate_of_a_stage_gives_the_same(tmp_path: Path) -> None:
    """What the tuner may choose is right: it compares, and compiles the candidates side by side."""
    output = tmp_path / "tuned.json"
    command = [sys.executable, ROOT / "benchmarks" / "tune_kernels.py", "--length", "2048", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--output", output],
        env=with_packages(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(output.read_text())["results"]
    assert {"compressed_forward", "select", "selected_backward"} <= set(results)
    for stage, entries in results.items():
        fitting = [entry for entry in entries if "out of resource" not in entry.get("error", "")]
        assert fitting, stage
        for entry in fitting:
            assert entry.get("off", math.nan) <= 1e-2, (stage, entry)


@dataclass
class Decoding:
    """A batch whose rows hold some of the tokens of its caches; NaN past their ends."""

    clean: Case
    buffers: Caches
    lengths: Tensor

    def hold(self, lengths: list[int]) -> None:
        """Changes what the buffers hold, in place."""
        for buffer, cache in zip(self.buffers, self.clean.tensors[1:7], strict=True):
            buffer.copy_(cache)
        poison_caches(self.buffers, lengths)
        self.lengths.copy_(torch.tensor(lengths))

    def run(self) -> tuple[Tensor, Tensor]:
        q, gates = self.clean.tensors[0].squeeze(1), self.clean.tensors[7].squeeze(1)
        return nsa_decode(
            q,
            *self.buffers,
            gates,
            geometry=GEOMETRY,
            lengths=self.lengths,
            backend="triton",
            return_blocks=True,
        )

    def check(self, out: Tensor, blocks: Tensor) -> None:
        q, *caches, gates = self.clean.exact().tensors
        expected, expected_blocks = nsa_decode(
            q.squeeze(1),
            *caches,
            gates.squeeze(1),
            geometry=GEOMETRY,
            lengths=self.lengths,
            backend="torch",
            return_blocks=True,
        )
        case = replace(self.clean, start=self.lengths - 1)
        same = agreement(case, blocks.unsqueeze(1), expected_blocks.unsqueeze(1)).squeeze(1)
        assert error(out * same, expected * same) <= 1e-2


LENGTHS = [65_536 - 64, 1, 40_001, 0, 5_000, 1_024, 65_536 - 33]


@pytest.fixture
def decoding() -> Decoding:
    capacity = 65_536
    case = draw(queries=1, start=capacity - 1, batch=len(LENGTHS), **SIXTEEN)
    lengths = torch.zeros(len(LENGTHS), dtype=torch.long, device=DEVICE)
    decoding = Decoding(case, Caches(*(torch.empty_like(x) for x in case.tensors[1:7])), lengths)
    decoding.hold(LENGTHS)
    return decoding


@torch.no_grad()
def test_decode_eager_and_in_a_graph(decoding: Decoding, poisoned: Poison) -> None:
    with poisoned():
        out, blocks = decoding.run()
    decoding.check(out, blocks)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with poisoned(), torch.cuda.graph(graph):
        out, blocks = decoding.run()
    for more in (0, 1, 15, 33):
        decoding.hold([length + more for length in LENGTHS])
        graph.replay()
        decoding.check(out, blocks)


@torch.no_grad()
@pytest.mark.parametrize("index", range(len(DECODE)))
def test_every_candidate_of_decode(index: int, decoding: Decoding, poisoned: Poison) -> None:
    q, gates = decoding.clean.tensors[0].squeeze(1), decoding.clean.tensors[7].squeeze(1)
    with poisoned():
        out, blocks = triton_decode(
            q,
            decoding.buffers,
            gates,
            geometry=GEOMETRY,
            lengths=decoding.lengths,
            scale=q.shape[-1] ** -0.5,
            return_blocks=True,
            config=DECODE[index],
        )
    decoding.check(out, blocks)


if __name__ == "__main__":
    compile_case(sys.argv[1])
