"""NSA's prefill of one sequence split over GPUs, against one GPU: times and equality.

    torchrun --nproc-per-node 2 benchmarks/context_parallel.py --lengths 32k,64k,128k --json parallel.json

Each process holds its tokens of a sequence of random data; keys and values are gathered whole, compressed
keys too (`nsa_kernels.parallel`). One GPU alone does the same work on the whole sequence, with nothing to
gather. A time is the slowest process's, between two barriers; the split's output is held to the whole one's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from nsa_kernels import BlockGeometry, compress_mean, nsa_attention
from nsa_kernels.bench.result import describe
from nsa_kernels.bench.settings import DTYPES, length_name, parse_lengths
from nsa_kernels.parallel import Split, gather, nsa_prefill


@dataclass(frozen=True, slots=True)
class Row:
    """One length; times in milliseconds."""

    tokens: int
    processes: int
    one_ms: float
    """The whole sequence on one device."""
    split_ms: float
    """Split over all, gathering included."""
    gather_ms: float
    """Gathering keys and values alone."""
    error: float
    """|split - whole| / |whole|, norms over the whole output."""
    largest: float
    """Largest difference of one value."""
    equal: bool
    """Whether all bits are the same."""


def main() -> None:
    """Measure, and print from the first process."""
    args = _arguments()
    gpu = torch.cuda.is_available()
    rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo", device_id=device if gpu else None)
    rows = []
    try:
        for length in args.lengths:
            rows.append(measure(length, args, device))
            if rank == 0:
                show(rows[-1])
                if args.json:  # anew after each length: a stop loses nothing
                    setting = describe(device, [str(word) for word in sys.argv])
                    data = {"environment": setting, "rows": [asdict(row) for row in rows]}
                    args.json.write_text(json.dumps(data, indent=2) + "\n")
    finally:
        dist.destroy_process_group()


def measure(length: int, args: argparse.Namespace, device: torch.device) -> Row:
    """One length on all processes."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    geometry = BlockGeometry()
    split = Split(length=length, ranks=ranks, grid=geometry.stride)
    # The same seed everywhere: each process can make the whole sequence, and take its part.
    pick = torch.Generator(device).manual_seed(0)

    def drawn(heads: int, width: int) -> Tensor:
        return torch.randn(1, length, heads, width, device=device, dtype=DTYPES[args.dtype], generator=pick)

    q, k, v = drawn(args.heads, args.head_dim), *(drawn(args.kv_heads, args.head_dim) for _ in "kv")
    gates = drawn(args.heads, 3).sigmoid()
    own = [split.take(x, rank) for x in (q, k, v, gates)]

    def phi(x: Tensor) -> Tensor:
        return compress_mean(x, geometry)

    def whole() -> Tensor:
        return nsa_attention(q, phi(k), phi(v), k, v, k, v, gates, geometry=geometry).out

    def share() -> Tensor:
        return nsa_prefill(*own, split=split, geometry=geometry, compress_k=phi, compress_v=phi)

    with torch.no_grad():
        one = _median_ms(whole, args.repeats, device)
        split_ms = _median_ms(share, args.repeats, device)
        gathering = _median_ms(lambda: (gather(own[1], split), gather(own[2], split)), args.repeats, device)
        found, expected = gather(share(), split), whole()
    gap = (found.float() - expected.float()).norm() / expected.float().norm()
    largest = (found.float() - expected.float()).abs().max()
    same = torch.equal(found, expected)
    return Row(length, ranks, one, split_ms, gathering, float(gap), float(largest), same)


def show(row: Row) -> None:
    """One line."""
    print(
        f"{length_name(row.tokens):>6}: one {row.one_ms:.3f} ms, {row.processes} processes "
        f"{row.split_ms:.3f} ms ({row.one_ms / row.split_ms:.2f}x), of which gathering "
        f"{row.gather_ms:.3f} ms; relative difference {row.error:.2e}, largest {row.largest:.2e}, "
        f"{'equal' if row.equal else 'not equal'} to the bit",
        flush=True,
    )


def _median_ms(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median over as many runs everywhere, each as long as the slowest process takes."""
    times = []
    for _ in range(repeats + 2):  # the first two compile and warm up
        _synchronize(device)
        dist.barrier()
        begin = time.perf_counter()
        run()
        _synchronize(device)
        times.append(1000 * (time.perf_counter() - begin))
    slowest = torch.tensor(times[2:], device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(statistics.median(slowest.tolist()))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=parse_lengths, default="32k,64k,128k", help="tokens; k = 1024")
    parser.add_argument("--heads", type=int, default=64, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=4, help="KV heads")
    parser.add_argument("--head-dim", type=int, default=128, help="width of a head")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
