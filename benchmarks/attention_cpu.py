"""NSA prefill (torch backend) against dense causal attention (torch SDPA) on this CPU, in one run.

    python benchmarks/attention_cpu.py
    python benchmarks/attention_cpu.py --lengths 4k,16k --head-dim 128 --json attention_cpu.json

Both get the same queries, keys and values, random, float32, one sequence. NSA gets its compressed keys
ready-made, as its cache would hold them: compression is a part of the projections. Dense gets its KV heads
repeated beforehand, the form that SDPA is fastest in. The two are timed in turns, so that another load on the
machine meets both; the figure is the median of the repeats (one at 64k and beyond).

OpenMP's threads wait passively unless OMP_WAIT_POLICY says otherwise, as in the command line: spinning
between the many small products of NSA costs several times the work itself where a core is shared.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels import BlockGeometry, compress_mean, nsa_attention
from nsa_kernels.bench import parse_lengths

LONG = 65536
"""Tokens from which each is timed once."""


def main() -> None:
    args = _arguments()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    if args.threads:
        torch.set_num_threads(args.threads)
    geometry = BlockGeometry()
    print(
        f"{args.heads} query heads, {args.kv_heads} KV heads, head dim {args.head_dim}, float32, batch 1, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n{geometry}\n"
    )
    print(f"{'tokens':>8} {'SDPA ms':>12} {'NSA ms':>12} {'SDPA / NSA':>12}")
    rows = []
    for length in args.lengths:
        dense, sparse = _contenders(length, args.heads, args.kv_heads, args.head_dim, geometry)
        repeats = 1 if length >= LONG else args.repeats
        dense_ms, sparse_ms = _median_ms([dense, sparse], repeats)
        print(f"{length:>8} {dense_ms:>12.0f} {sparse_ms:>12.0f} {dense_ms / sparse_ms:>12.2f}", flush=True)
        rows.append(
            {"tokens": length, "sdpa_ms": dense_ms, "nsa_ms": sparse_ms, "ratio": dense_ms / sparse_ms}
        )
    if args.json:
        args.json.write_text(json.dumps({"setting": _setting(args), "rows": rows}, indent=2) + "\n")


def _contenders(
    length: int, heads: int, kv_heads: int, dim: int, geometry: BlockGeometry
) -> list[Callable[[], Tensor]]:
    q = torch.randn(1, length, heads, dim)
    k, v = torch.randn(1, length, kv_heads, dim), torch.randn(1, length, kv_heads, dim)
    gates = torch.rand(1, length, heads, 3)
    k_cmp, v_cmp = compress_mean(k, geometry), compress_mean(v, geometry)
    q_dense = q.transpose(1, 2).contiguous()
    k_dense, v_dense = (x.transpose(1, 2).repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))

    def dense() -> Tensor:
        return F.scaled_dot_product_attention(q_dense, k_dense, v_dense, is_causal=True)

    def sparse() -> Tensor:
        return nsa_attention(q, k_cmp, v_cmp, k, v, k, v, gates, geometry=geometry, backend="torch").out

    return [dense, sparse]


def _median_ms(contenders: list[Callable[[], Tensor]], repeats: int) -> list[float]:
    """Median wall time of each; run in turns, after a warm-up where there are repeats."""
    seconds: list[list[float]] = [[] for _ in contenders]
    if repeats > 1:
        for run in contenders:
            run()
    for _ in range(repeats):
        for run, times in zip(contenders, seconds, strict=True):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return [1000 * statistics.median(times) for times in seconds]


def _setting(args: argparse.Namespace) -> dict[str, str | int]:
    return {
        "heads": args.heads,
        "kv_heads": args.kv_heads,
        "head_dim": args.head_dim,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpus": os.cpu_count() or 0,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lengths", type=parse_lengths, default="4k,16k,64k", help="tokens, with commas; k = 1024"
    )
    parser.add_argument("--heads", type=int, default=16, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=1, help="KV heads; must divide the query heads")
    parser.add_argument("--head-dim", type=int, default=64, help="width of a head, for keys and values")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each below 64k tokens")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's own choice)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if args.heads % args.kv_heads:
        parser.error(f"--kv-heads must divide --heads, got {args.kv_heads} and {args.heads}")
    return args


if __name__ == "__main__":
    main()
