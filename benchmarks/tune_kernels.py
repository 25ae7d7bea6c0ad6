"""Measures every candidate configuration of the Triton kernels' stages on this GPU.

    python benchmarks/tune_kernels.py --length 65536 --stages compressed_forward,select --output tuned.json
    python benchmarks/tune_kernels.py --length 2048 --batch 32 --heads 8 --kv-heads 2 --head-dim 64 \\
        --stages masked_forward,masked_queries,masked_keys      (masked_everything: --length 1024 --batch 64)

Candidates are compiled first, by as many processes as there are cores, and then measured one by one: the
median of CUDA-event times. Each result is compared with that of the first candidate. The winners belong
into `kernels/nsa_kernels/triton/configs.py`.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import statistics
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from launch_candidates import candidates
from torch import Tensor

from nsa_kernels import BlockGeometry, compress_mean
from nsa_kernels.triton.function import make_grid
from nsa_kernels.triton.masked.conditions import all_chosen
from nsa_kernels.triton.masked.forward import masked_forward
from nsa_kernels.triton.masked.keys import key_gradients
from nsa_kernels.triton.masked.queries import query_gradients
from nsa_kernels.types import Caches

MODULES = {
    "compressed_forward": "prefill.compressed",
    "select": "prefill.select",
    "window_forward": "prefill.window",
    "forced_forward": "prefill.forced",
    "window_and_forced_forward": "prefill.window_and_forced",
    "selected_forward": "prefill.selected",
    "masked_forward": "masked.forward",
    "masked_everything": "masked.forward",
    "masked_queries": "masked.queries",
    "masked_keys": "masked.keys",
    "gate_backward": "backward.gates",
    "compressed_backward": "backward.compressed",
    "window_backward": "backward.window",
    "selected_backward": "backward.selected",
}


class Bench:
    """Inputs of one size, and the intermediate results that later stages need, made when first asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Random inputs on the GPU."""
        torch.manual_seed(0)
        self.geometry = BlockGeometry()
        n, h, hk, d, dv = (
            args.length,
            args.heads,
            args.kv_heads,
            args.head_dim,
            args.value_dim or args.head_dim,
        )

        def random(*shape: int) -> Tensor:
            return torch.randn(args.batch, *shape, device="cuda", dtype=torch.bfloat16)

        self.q = random(n, h, d)
        self.k, self.v = random(n, hk, d), random(n, hk, dv)
        self.gates = random(n, h, 3).sigmoid()
        self.dout = random(n, h, dv)
        self.k_cmp = compress_mean(self.k, self.geometry, backend="torch") * self.geometry.block**0.5
        self.v_cmp = compress_mean(self.v, self.geometry, backend="torch")
        self.caches = Caches(self.k_cmp, self.v_cmp, self.k, self.v, self.k, self.v)
        self.grid = make_grid(
            self.q, self.caches, geometry=self.geometry, start=0, lengths=None, scale=self.q.shape[-1] ** -0.5
        )
        self._made: dict[str, Any] = {}

    def need(self, name: str) -> Any:  # noqa: ANN401
        """A result of an earlier stage."""
        if name not in self._made:
            self._made[name] = self.stage(name)(None)
        return self._made[name]

    def stage(self, name: str) -> Callable[[Mapping[str, int] | None], Any]:
        """The stage as a function of its configuration."""
        if name.startswith("masked_"):
            return self._masked(name)
        run = getattr(importlib.import_module(f"nsa_kernels.triton.{MODULES[name]}"), name)
        q, k, v, grid = self.q, self.k, self.v, self.grid
        if name == "compressed_forward":
            return lambda c: run(q, self.k_cmp, self.v_cmp, grid, config=c)
        if name in ("window_forward", "forced_forward"):
            return lambda c: run(q, k, v, grid, config=c)
        if name == "window_and_forced_forward":
            return lambda c: tuple(x for pair in run(q, self.caches, grid, config=c) for x in pair)
        o_cmp, lse_cmp = self.need("compressed_forward")
        if name == "select":
            return lambda c: run(q, self.k_cmp, lse_cmp, grid, config=c)
        o_win, lse_win = self.need("window_forward")
        blocks = self.need("select")
        forced = self.need("forced_forward")
        if name == "selected_forward":
            return lambda c: run(
                q, k, v, blocks, self.gates, o_cmp, o_win, *forced, grid, save=True, config=c
            )
        _, o_slc, lse_slc = self.need("selected_forward")
        if name == "gate_backward":
            return lambda c: run(self.dout, o_cmp, o_slc, o_win, grid, config=c)
        dgates = self.need("gate_backward")
        dq = self._made.setdefault("dq", torch.zeros(q.shape, device="cuda", dtype=torch.float32))

        def backward(c: Mapping[str, int] | None, *, check: bool = True) -> tuple[Tensor, ...]:
            upstream = (self.dout, *lse, self.gates, dgates)
            dq.zero_() if check else None
            out = run(*kv, *upstream, *extra, dq, grid, config=c)
            return (*out, dq.clone()) if check else out

        kv = (q, self.k_cmp, self.v_cmp) if name == "compressed_backward" else (q, k, v)
        lse = ({"compressed": lse_cmp, "window": lse_win, "selected": lse_slc}[name.split("_")[0]],)
        extra = (blocks,) if name == "selected_backward" else ()
        return backward

    def _masked(self, name: str) -> Callable[[Mapping[str, int] | None], Any]:
        """A stage of the masked kernels, with the window's keys those of the selected branch."""
        everything = all_chosen(self.grid)
        if name == ("masked_forward" if everything else "masked_everything"):
            raise ValueError(f"{name} is not what runs at this length: take the other of the two forwards")
        chosen = (None, None) if everything else (self.need("compressed_forward"), self.need("select"))
        forward = partial(masked_forward, self.q, self.caches, self.gates, *chosen, self.grid, shared=True)
        if name in ("masked_forward", "masked_everything"):

            def attend(config: Mapping[str, int] | None) -> tuple[Tensor, ...]:
                out, kept = forward(save=True, config=config)
                return out, *kept[:6]

            return attend
        kept = forward(save=True)[1]
        queries = partial(
            query_gradients, self.q, self.caches, self.gates, self.dout, kept, self.grid, shared=True
        )
        if name == "masked_queries":
            return lambda config: tuple(queries(config=config))
        keys = (self.q, self.k, self.v, self.dout, kept.members, queries(), self.grid)
        return lambda config: key_gradients(*keys, selected=True, windowed=True, config=config)


def main() -> None:
    """Runs the candidates and prints a table."""
    args = _arguments()
    stages = args.stages.split(",")
    jobs = [(s, i) for s in stages for i in range(len(candidates(s)))]
    workers = min(args.workers or os.cpu_count() or 1, len(jobs))
    if workers > 1:
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=_compile, args=(args, jobs[w::workers])) for w in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    bench = Bench(args)
    results: dict[str, list[dict[str, Any]]] = {}
    for stage in stages:
        results[stage] = _measure(bench, stage, args.repeats)
        for entry in sorted(results[stage], key=lambda e: e.get("ms", 1e9))[: args.show]:
            print(stage, json.dumps(entry), flush=True)
    if args.output:
        args.output.write_text(json.dumps({"length": args.length, "results": results}, indent=1))


def _measure(bench: Bench, stage: str, repeats: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    run = bench.stage(stage)
    plain: dict[str, Any] = (
        {"check": False} if stage.endswith("_backward") and stage != "gate_backward" else {}
    )
    first = None
    for config in candidates(stage):
        try:
            result = run(config)
            result = result if isinstance(result, tuple) else (result,)
            if first is None:
                first = result
            error = max(_difference(a, b) for a, b in zip(result, first, strict=True))
            times = sorted(_time(partial(run, config, **plain)) for _ in range(repeats))
        except Exception as problem:  # a candidate that does not fit this GPU must not end the run
            entries.append({"config": config, "error": str(problem).strip().splitlines()[-1][:120]})
            continue
        entries.append(
            {
                "config": config,
                "ms": round(statistics.median(times), 3),
                "least": round(times[0], 3),
                "off": error,
            }
        )
    return entries


def _time(run: Callable[[], Any]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _difference(a: Tensor, b: Tensor) -> float:
    """Relative distance; for indices, the share that differs."""
    if not a.is_floating_point():
        return (a != b).float().mean().item()
    a, b = (torch.where(x == torch.inf, 0.0, x.float()) for x in (a, b))  # a log-sum-exp of nothing
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


def _compile(args: argparse.Namespace, jobs: list[tuple[str, int]]) -> None:
    bench = Bench(args)
    for stage, index in jobs:
        try:
            bench.stage(stage)(candidates(stage)[index])
            torch.cuda.synchronize()
        except Exception:
            print(stage, candidates(stage)[index], traceback.format_exc(limit=1)[-300:], file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=65536)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--value-dim", type=int)
    parser.add_argument("--stages", default=",".join(x for x in MODULES if "masked" not in x))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--show", type=int, default=6, help="candidates to print of each stage")
    parser.add_argument("--workers", type=int, help="processes that compile; default: one a core")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
