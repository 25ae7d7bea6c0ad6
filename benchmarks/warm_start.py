"""What the first run of an NSA model costs on a fresh machine: kernels compiled, and their seconds.

    python benchmarks/warm_start.py                                  # the paper's shape, one prompt of 64k
    python benchmarks/warm_start.py --shapes twin,wide --prompts 8k,64k --rows 1,16 --json warm.json

Needs a GPU. Each measurement has a process and an empty folder for Triton's cache of its own. `as it comes`
reads the prompt in pieces against a cache and decodes from a CUDA graph, and so compiles each kernel where it
is launched, one after another; `warm-up` calls `nsa_models.warm_up` before. In both the same run follows once
more: what its first time costs above the second is what compiling takes out of a run. CUDA, cuBLAS and cuDNN
are started by a dense model of the same shape before.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "twin": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "hidden_size": 512},
    "wide": {"num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "hidden_size": 1024},
    "paper": {
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 192,
        "v_head_dim": 128,
        "hidden_size": 1024,
    },
}
MODES = ("as it comes", "warm-up")
LAYERS = 2


class Counter:
    """What Triton compiles, and what it builds with the C compiler to launch it (3.6 alone), so far."""

    def __init__(self) -> None:
        import triton
        import triton.runtime.build as build

        self.kernels: collections.Counter[str] = collections.Counter()
        self.compile_seconds = self.launcher_seconds = 0.0
        self.launchers = 0
        self._lock = threading.Lock()
        triton.knobs.compilation.listener = self._compiled
        # It is private, and nothing else tells of it: without, these seconds stand in the run's alone.
        plain: Callable[..., Any] | None = getattr(build, "_build", None)
        if plain is not None:
            build._build = functools.partial(self._built, plain)

    def _built(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        begin = time.perf_counter()
        made = plain(*args, **kwargs)
        with self._lock:
            self.launchers += 1
            self.launcher_seconds += time.perf_counter() - begin
        return made

    def _compiled(self, **event: Any) -> None:  # noqa: ANN401 - as triton calls it
        with self._lock:
            if not event["cache_hit"]:
                self.kernels[event["src"].name] += 1
                self.compile_seconds += event["times"].total / 1e6

    def figures(self) -> dict[str, Any]:
        """As they stand."""
        return {
            "kernels": sum(self.kernels.values()),
            "compile_seconds": self.compile_seconds,
            "launchers": self.launchers,
            "launcher_seconds": self.launcher_seconds,
            "by_kernel": dict(self.kernels),
        }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One measurement, in this process."""
    import torch

    import nsa_models
    from nsa_models import DecodeGraph, NSACache, NSADecoderConfig, NSADecoderForCausalLM

    device = torch.device("cuda")

    def model_of(attention: str) -> NSADecoderForCausalLM:
        torch.manual_seed(0)
        config = NSADecoderConfig(
            **SHAPES[args.shape],
            attention=attention,
            num_hidden_layers=LAYERS,
            intermediate_size=1024,
            vocab_size=1024,
            nsa_compression=args.compression,
            max_position_embeddings=2 * max(args.prompts),
        )
        model: NSADecoderForCausalLM = NSADecoderForCausalLM(config).to(device, torch.bfloat16).eval()
        return model

    @torch.inference_mode()
    def run(model: NSADecoderForCausalLM, prompts: list[int], rows: list[int]) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for length in prompts:
            for count in rows:
                cache = NSACache(LAYERS)
                ids = torch.randint(1024, (count, length), device=device)
                for start in range(0, length, args.chunk):
                    piece = ids[:, start : start + args.chunk]
                    model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
                decoder = DecodeGraph(model, cache, max_new_tokens=args.new_tokens)
                for _ in range(args.new_tokens):
                    decoder.step([1] * count)
                if model.config.attention == "nsa" and not decoder.captured:
                    raise SystemExit("the decode step was not captured in a CUDA graph")
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    dense = model_of("full")
    run(dense, [args.chunk], [min(args.rows)])
    del dense
    torch.cuda.empty_cache()
    model, counter = model_of("nsa"), Counter()
    warm_seconds = 0.0
    if args.mode == "warm-up":
        begin = time.perf_counter()
        said = nsa_models.warm_up(
            model, prompts=args.prompts, rows=args.rows, chunk=args.chunk, new_tokens=args.new_tokens
        )
        warm_seconds = time.perf_counter() - begin
        print(said, file=sys.stderr)
    ahead = counter.figures()
    first = run(model, args.prompts, args.rows)
    whole = counter.figures()
    second = run(model, args.prompts, args.rows)
    again = counter.figures()
    return {
        "shape": args.shape,
        "mode": args.mode,
        **whole,
        "kernels_ahead": ahead["kernels"],
        "kernels_in_second_run": again["kernels"] - whole["kernels"],
        "warm_up_seconds": warm_seconds,
        "first_seconds": first,
        "second_seconds": second,
        "over_second_seconds": first - second,
    }


def measure_apart(shape: str, mode: str, arguments: list[str]) -> dict[str, Any] | str:
    """The same in a process of its own, with an empty cache; what it said where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TRITON_CACHE_DIR": str(Path(folder) / "triton"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, *arguments, "--shapes", shape, "--mode", mode]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return f"exit status {done.returncode}, see above"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, seconds; compiling and launchers are summed over the kernels."""
    lines = [
        "| shape | | kernels | compiling | launchers | warm-up | first run | second run | first - second |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        names = ("compile_seconds", "launcher_seconds", "warm_up_seconds")
        cells = [row["shape"], row["mode"], str(row["kernels"]), *(f"{row[name]:.1f}" for name in names)]
        runs = ("first_seconds", "second_seconds", "over_second_seconds")
        cells += [f"{row[name]:.2f}" for name in runs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tokens(text: str) -> list[int]:
    """Numbers in a list like 8k,65536."""
    return [int(part[:-1]) * 1024 if part.endswith("k") else int(part) for part in text.split(",")]


def main() -> None:
    """Measures what the arguments name; prints a table, and JSON with --json FILE or after it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", default="paper", help=f"of {', '.join(SHAPES)} (default paper)")
    parser.add_argument("--prompts", type=tokens, default=[65536], help="tokens of the prompts (default 64k)")
    parser.add_argument(
        "--rows", type=tokens, default=[1], help="batch sizes, each with each prompt (default 1)"
    )
    parser.add_argument("--chunk", type=int, default=8192, help="tokens to a forward (default 8192)")
    parser.add_argument("--new-tokens", type=int, default=32, help="decoded (default 32)")
    parser.add_argument("--compression", default="mlp", choices=("mlp", "linear", "mean"))
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shapes = args.shapes.split(",")
    for shape in shapes:
        if shape not in SHAPES:
            parser.error(f"--shapes: {shape!r} is none of {', '.join(SHAPES)}")
    if args.mode:
        args.shape = shapes[0]
        print(json.dumps(measure(args)))
        return

    import torch
    import triton

    if not torch.cuda.is_available():
        raise SystemExit("this needs a GPU: the kernels are compiled for the one that is there")
    import nsa_models

    modes = MODES if hasattr(nsa_models, "warm_up") else MODES[:1]
    arguments = [
        f"--prompts={','.join(map(str, args.prompts))}",
        f"--rows={','.join(map(str, args.rows))}",
        f"--chunk={args.chunk}",
        f"--new-tokens={args.new_tokens}",
        f"--compression={args.compression}",
    ]
    results: list[dict[str, Any]] = []
    for shape in shapes:
        for mode in modes:
            result = measure_apart(shape, mode, arguments)
            if isinstance(result, str):
                raise SystemExit(f"{shape}, {mode}: {result}")
            results.append(result)
            print(f"{shape}, {mode}: done", file=sys.stderr)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}, "
        f"{len(os.sched_getaffinity(0))} cores; seconds\n"
    )
    print(table(results))
    figures = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "prompts": args.prompts,
        "rows": args.rows,
        "chunk": args.chunk,
        "results": results,
    }
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    else:
        print("\n" + json.dumps(figures))


if __name__ == "__main__":
    main()
