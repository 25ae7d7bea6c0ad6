"""A prefill that is split over processes gives what one process gives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nsa_kernels import BlockGeometry, compress_mean, nsa_attention
from nsa_kernels.parallel import Split

ROOT = Path(__file__).parents[2]
GEOMETRY = {"block": 8, "stride": 4, "select_block": 8, "select_count": 4, "window": 12}


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("length", [96, 50, 5, 1])
def test_pieces_cover_the_sequence_once_and_begin_on_the_grid(length, ranks):
    split = Split(length=length, ranks=ranks, grid=4)
    parts = [part for rank in range(ranks) for part in split.pieces(rank)]
    assert sorted(t for part in parts for t in part) == list(range(length))
    assert all(part.start % 4 == 0 for part in parts if len(part))
    x = torch.arange(2 * length).view(2, length, 1)
    assert torch.equal(split.whole([split.take(x, rank) for rank in range(ranks)]), x)


def test_the_pairs_of_a_causal_mask_are_shared_evenly():
    split = Split(length=1024, ranks=4)
    pairs = [sum(t + 1 for part in split.pieces(rank) for t in part) for rank in range(4)]
    assert max(pairs) == min(pairs)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="length"):
        Split(length=0, ranks=2)
    with pytest.raises(ValueError, match="processes 0 to 1"):
        Split(length=9, ranks=2).pieces(2)


PROCESS = """
import sys
import torch
import torch.distributed as dist
from nsa_kernels import BlockGeometry, compress_mean
from nsa_kernels.parallel import Split, nsa_prefill

rank, ranks, port, length, folder = *map(int, sys.argv[1:5]), sys.argv[5]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
x = torch.load(folder + "/given.pt")
geometry = BlockGeometry(**x.pop("geometry"))
split = Split(length=length, ranks=ranks, grid=geometry.stride)
phi = lambda x: compress_mean(x, geometry)
more = dict(split=split, geometry=geometry, compress_k=phi, compress_v=phi, backend="torch")
out = nsa_prefill(**{name: split.take(value, rank) for name, value in x.items()}, **more)
torch.save(out, f"{folder}/out{rank}.pt")
try:
    nsa_prefill(*(x[name][:, :3] for name in ("q", "k", "v", "gates")), **more)
except ValueError as error:
    assert f"process {rank} holds" in str(error)
else:
    raise AssertionError("the wrong number of tokens was taken")
dist.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(("length", "own_window"), [(101, True), (41, False)])
def test_two_processes_give_what_one_gives(length, own_window, tmp_path):
    pick = torch.Generator().manual_seed(0)

    def drawn(heads, width):
        return torch.randn(2, length, heads, width, generator=pick)

    given = {"q": drawn(4, 16), "k": drawn(2, 16), "v": drawn(2, 16), "gates": drawn(4, 3).sigmoid()}
    if own_window:
        given |= {"k_win": drawn(2, 16), "v_win": drawn(2, 16)}
    torch.save({**given, "geometry": GEOMETRY}, tmp_path / "given.pt")
    port, env = free_port(), {**os.environ, "PYTHONPATH": str(ROOT / "kernels"), "CUDA_VISIBLE_DEVICES": ""}
    words = [[str(rank), "2", str(port), str(length), str(tmp_path)] for rank in range(2)]
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, *x], env=env, stderr=subprocess.PIPE, text=True)
        for x in words
    ]
    said = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    geometry = BlockGeometry(**GEOMETRY)
    q, k, v = given["q"], given["k"], given["v"]
    near = given.get("k_win", k), given.get("v_win", v)
    expected = nsa_attention(
        q, compress_mean(k, geometry), compress_mean(v, geometry), k, v, *near, given["gates"],
        geometry=geometry, backend="torch",
    ).out  # fmt: skip
    split = Split(length=length, ranks=2, grid=geometry.stride)
    found = split.whole([torch.load(tmp_path / f"out{rank}.pt") for rank in range(2)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
