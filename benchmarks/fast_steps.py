"""Decode steps of a dense model under a sparse method that keeps its pages' extremes, beside full attention.

    python benchmarks/fast_steps.py --json steps.json                  # 32k and 64k, one row and eight
    python benchmarks/fast_steps.py --method quest:2560,dense_layers=none --lengths 64k --rows 1

The project's full-attention decoder with random weights (four layers of an 8B's shape by default), bfloat16,
over one batch of random prompts. `full` and the methods launch each kernel of a step, as the engine does
under methods; `full, engine` replays the engine's own step from a CUDA graph, as it decodes without a method
(on a GPU). A step is all layers with their MLPs: attention is what differs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from random_dense import add_shape, add_timing, made, shape_of, write_figures
from torch import Tensor

from nsa_kernels.bench.settings import length_name
from nsa_models import NSACache, NSADecoderConfig, NSADecoderForCausalLM
from nsa_models.families import family_of
from nsa_models.methods import attach, parse_method

METHODS = ("quest:1024,dense_layers=none", "quest:2560,dense_layers=none")
_PIECE = 4096
"""Tokens of a prompt that are read at once."""


@dataclass(frozen=True, slots=True)
class Row:
    """One contender at one length and batch; times in milliseconds a step."""

    tokens: int
    rows: int
    what: str
    ms: float
    """Median over the repeats."""
    spread: tuple[float, float]
    """Fastest and slowest repeat."""
    density: float | None
    """KV tokens read, of those that full attention reads; None for full attention."""
    rebuilt: int | None
    """Keys whose page was looked at anew: those of the first step."""


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print; the file is written anew after each batch, so that a stop loses nothing."""
    args = _arguments(words)
    model = random_decoder(args)
    rows: list[Row] = []
    with torch.inference_mode():
        for length in sorted(args.lengths):
            for count in args.rows:
                here = _measured(model, length, count, args)
                print(table(here), flush=True)
                rows += here
                write_figures(args, words, rows)


def table(rows: Sequence[Row]) -> str:
    """Markdown; multiples of `full`, which launches its kernels as the methods do."""
    full = {(row.tokens, row.rows): row.ms for row in rows if row.what == "full"}
    lines = ["| tokens | rows | | a step, ms | full / this | density |", "|---|---|---|---|---|---|"]
    for row in rows:
        density = "" if row.density is None else f"{row.density:.3f}"
        lines.append(
            f"| {length_name(row.tokens)} | {row.rows} | {row.what} | {row.ms:.2f} | "
            f"{full[row.tokens, row.rows] / row.ms:.2f} | {density} |"
        )
    return "\n".join(lines)


def random_decoder(args: argparse.Namespace) -> NSADecoderForCausalLM:
    """The project's decoder with full attention."""
    config = NSADecoderConfig(attention="full", **shape_of(args))
    return made(lambda: NSADecoderForCausalLM(config), args)


def _measured(model: NSADecoderForCausalLM, length: int, count: int, args: argparse.Namespace) -> list[Row]:
    """All contenders on caches of the same prompts."""
    ids = torch.randint(3, model.config.vocab_size, (count, length), device=model.device)
    token = ids[:, :1]
    cache = _read(model, ids)

    def timed(step: Callable[[], object]) -> tuple[float, tuple[float, float]]:
        _run(step, args.steps)
        times = [_run(step, args.steps) for _ in range(args.repeats)]
        return statistics.median(times), (min(times), max(times))

    def eager() -> object:
        return model(token, past_key_values=cache, use_cache=True).logits

    rows = [Row(length, count, "full", *timed(eager), None, None)]
    for spec in args.method or METHODS:
        with attach(model, parse_method(f"{spec},fast=true")) as attached, attached.decoding():
            measured = timed(eager)
            reads = attached.reads
            density = reads.decode.read / reads.decode.dense
            rows.append(Row(length, count, spec, *measured, density, reads.index.rebuilt))
    if model.device.type == "cuda":
        step = _engines_step(model, ids, room=(args.repeats + 2) * args.steps)
        rows.append(Row(length, count, "full, engine", *timed(step), None, None))
    return rows


def _engines_step(model: NSADecoderForCausalLM, ids: Tensor, *, room: int) -> Callable[[], object]:
    """A step of slots that hold the prompts."""
    family = family_of(model)
    slots = family.slots(len(ids), longest=ids.shape[1], room=room, graphs=True)
    assert slots is not None  # this decoder has some on a GPU
    for slot, prompt in enumerate(ids):
        row = family.empty(1)
        for piece in prompt[None].split(_PIECE, dim=1):
            counts = [piece.shape[1]]
            given = family.inputs(piece, counts, row)
            family.absorb(family.forward({**given, "logits_to_keep": 1}), piece, counts, row)
        slots.admit(slot, row, 0)
    return slots.step


def _read(model: NSADecoderForCausalLM, ids: Tensor) -> NSACache:
    cache = NSACache(model.config.num_hidden_layers, room=ids.shape[1] + 1024)
    for piece in ids.split(_PIECE, dim=1):
        model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _run(step: Callable[[], object], steps: int) -> float:
    """Milliseconds a step."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    if gpu:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begin) / steps


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shape(parser)
    parser.add_argument(
        "--rows", type=lambda text: [int(part) for part in text.split(",")], default="1,8", help="of a batch"
    )
    parser.add_argument(
        "--method", action="append", help="NAME:BUDGET,OPTION=VALUE,..., again for more; default: Quest twice"
    )
    parser.add_argument("--steps", type=int, default=32, help="steps to a timed run")
    add_timing(parser)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
