"""The choice of the largest importances against sorting, in the interpreter or on a GPU."""

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")
import triton
import triton.language as tl

from nsa_kernels.triton.prefill.ranking import keep_largest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LANES = 32
INFINITE = 0x7F800000  # what NaN counts as
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@triton.jit
def choose(Ranks, Need, Chosen, BQ: tl.constexpr, A: tl.constexpr, LANES: tl.constexpr, BITS: tl.constexpr):
    index = tl.arange(0, A)[None, :, None] * LANES + tl.arange(0, LANES)[None, None, :]
    at = tl.arange(0, BQ)[:, None, None] * (A * LANES) + index
    ranks, least = keep_largest(tl.load(Ranks + at), index, tl.load(Need + tl.arange(0, BQ)), BITS)
    tl.store(Chosen + at, (ranks >= least[:, None, None]).to(tl.int32))


def ordered(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sort(x, 1)[:, :: rng.choice([1, -1])].copy()


def scaled(every: int) -> Change:
    def change(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x[:, rng.integers(0, every) :: every] *= 100
        return x

    return change


FLOATS: dict[str, Change] = {
    "random": lambda x, rng: x,
    "equal": lambda x, rng: rng.integers(0, rng.choice([2, 4, 50]), x.shape).astype(np.float32),
    "in order": ordered,
    "all in a lane": scaled(LANES),
    "all in a group": scaled(8 * LANES),
    "mostly 0": lambda x, rng: np.where(rng.random(x.shape) < 0.99, 0, x).astype(np.float32),
    "some NaN": lambda x, rng: np.where(rng.random(x.shape) < 0.02, np.inf, x).astype(np.float32),
    "all NaN": lambda x, rng: np.full_like(x, np.inf),
}


def ranks_of(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    x = np.exp(rng.standard_normal(shape) * rng.choice([0.3, 1, 4])).astype(np.float32)
    ranks = FLOATS[kind](x, rng).view(np.int32).copy()
    assert ranks.max() <= INFINITE
    used = rng.integers(0, shape[1] + 1, shape[0])
    if rng.random() < 0.5:
        used[:] = rng.choice([0, 10, shape[1]])
    ranks[np.arange(shape[1])[None] >= used[:, None]] = -1
    ranks[:, 0] = rng.choice([-1, 0])
    return ranks


@pytest.mark.parametrize("width", [32, 64, 256, 512, 2048])
@pytest.mark.parametrize("kind", FLOATS)
def test_it_chooses_what_sorting_does(kind: str, width: int) -> None:
    rng = np.random.default_rng(width)
    for queries in (1, 4, 8, 8):
        ranks = ranks_of(kind, (queries, width), rng)
        most = rng.choice([32, width + 5])
        need = rng.integers(-1, most, queries) if rng.random() < 0.5 else np.full(queries, 13)
        expected = np.zeros_like(ranks)
        for row, values in enumerate(ranks):
            best = sorted(np.flatnonzero(values >= 0), key=lambda i: (-values[i], i))
            expected[row, best[: max(0, need[row])]] = 1
        given = torch.from_numpy(ranks).to(DEVICE), torch.from_numpy(need.astype(np.int32)).to(DEVICE)
        chosen = torch.full((queries, width), 7, dtype=torch.int32, device=DEVICE)
        choose[(1,)](*given, chosen, queries, width // LANES, LANES, width.bit_length())
        assert torch.equal(chosen.cpu(), torch.from_numpy(expected)), need
