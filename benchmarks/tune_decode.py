"""Measures every candidate configuration of the decode kernels on this GPU, in CUDA graphs.

    python benchmarks/tune_decode.py --cases 1x65536,1x131072,16x65536 --output tuned.json

A graph holds one decode on each of several sets of caches, together larger than the L2 cache, so that each
reads from memory, as a layer of a model does. Each result is compared with that of the torch backend.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from launch_candidates import DECODE
from torch import Tensor

from nsa_kernels import BlockGeometry, compress_mean, nsa_decode
from nsa_kernels.triton.decode import decode
from nsa_kernels.types import Caches


class Rows:
    """One set of full caches and a query a row."""

    def __init__(self, batch: int, length: int, args: argparse.Namespace) -> None:
        """Random inputs on the GPU."""
        self.geometry = BlockGeometry()

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

        keys = (batch, length, args.kv_heads, args.head_dim)
        self.q, k, v = random(batch, args.heads, args.head_dim), random(*keys), random(*keys)
        k_cmp = compress_mean(k, self.geometry, backend="torch") * self.geometry.block**0.5
        v_cmp = compress_mean(v, self.geometry, backend="torch")
        self.caches = Caches(k_cmp, v_cmp, k, v, k, v)
        self.gates = random(batch, args.heads, 3).sigmoid()
        self.lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")

    def decode(self, config: Mapping[str, int]) -> Tensor:
        """The kernels under test."""
        return decode(
            self.q,
            self.caches,
            self.gates,
            geometry=self.geometry,
            lengths=self.lengths,
            scale=self.q.shape[-1] ** -0.5,
            return_blocks=False,
            config=config,
        ).out

    def expected(self) -> Tensor:
        """The torch backend's answer."""
        return nsa_decode(
            self.q, *self.caches, self.gates, geometry=self.geometry, lengths=self.lengths, backend="torch"
        ).out


def main() -> None:
    """Runs the candidates and prints a line for each."""
    args = _arguments()
    results: dict[str, list[dict[str, Any]]] = {}
    for case in args.cases.split(","):
        batch, length = map(int, case.split("x"))
        sets = [Rows(batch, length, args) for _ in range(max(2, args.tokens // (batch * length)))]
        expected = sets[0].expected().float()
        entries = results[case] = []
        for config in DECODE:
            try:
                out = sets[0].decode(config).float()
                error = ((out - expected).norm() / expected.norm()).item()
                micros = _graph_time(sets, config, args.repeats)
            except Exception as problem:  # a candidate that does not fit this GPU must not end the run
                entries.append({"config": config, "error": str(problem).strip().splitlines()[-1][:120]})
                continue
            entries.append({"us": round(micros, 2), "off": round(error, 5), "config": config})
        for entry in sorted(entries, key=lambda e: e.get("us", 1e9))[: args.show]:
            print(case, json.dumps(entry), flush=True)
    if args.output:
        args.output.write_text(json.dumps(results, indent=1))


def _graph_time(sets: list[Rows], config: Mapping[str, int], repeats: int) -> float:
    """Microseconds of one decode, the median over replays."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for rows in sets:
            rows.decode(config)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for rows in sets:
            rows.decode(config)
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(sets))
    return statistics.median(times)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", default="1x8192,1x65536,1x131072,16x65536", help="rows x tokens, with commas"
    )
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=1 << 21, help="tokens in all sets of caches together")
    parser.add_argument("--show", type=int, default=4, help="candidates to print of each case")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
