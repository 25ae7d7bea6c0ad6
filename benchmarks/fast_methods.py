"""Prefill of a dense model under sparse methods that run by kernels, beside full attention, in one run.

    python benchmarks/fast_methods.py --json fast.json                          # 32k and 64k, in some minutes
    python benchmarks/fast_methods.py --lengths 64k --method moba:4k,chunk=512  # one method
    python benchmarks/fast_methods.py --layers 8 --seconds 600

A random Llama (four layers of an 8B's shape by default) in bfloat16 reads one prompt of random tokens and
keeps no cache: times are what a run pays, choice, attention and counts of reads included. `rest` is the same
model without any attention, so that what attention takes is the difference. Full attention is the model's, by
torch's choice of a kernel and by cuDNN; ratios are to the faster one. Random weights agree less than trained
ones: unions of neighbours (MoBA) are as large as they can be, and vertical-slash's diagonals lie anywhere. A
gate of SeerAttention is random too.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from random_dense import add_shape, add_timing, made, shape_of, write_figures
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import sdpa_mask

from nsa_kernels.bench.settings import length_name
from nsa_models.methods import Method, attach, parse_method

METHODS = (
    "block-sparse:6400",
    "block-sparse:3200",
    "vertical-slash:7096,reading=kernel",
    "vertical-slash:830,vertical=30,reading=kernel",
    "moba:48k",
    "moba:4k,chunk=512",
    "flexprefill",
    "xattention",
    "pbs-attn",
    "infllm:6272",
    "power-attention",
    "s2-attention",
    "seer-attention-prefill:ratio=0.2",
)
"""The authors' sizes, and what reads less; a gate's weights are made."""
_REST = "fast_methods_rest"


@dataclass(frozen=True, slots=True)
class Row:
    """One contender over one prompt; times in milliseconds."""

    tokens: int
    what: str
    ms: float
    """Median of a whole prefill."""
    spread: tuple[float, float]
    """Fastest and slowest run."""
    density: float | None
    """KV tokens read, of those that full attention reads; None for what isn't a method."""
    peak_bytes: int | None
    """Above the weights, on a GPU."""
    attention_ms: float | None = None
    """All layers' attention: above the model without."""
    ratio: float | None = None
    """The faster full attention's time over this one, of whole prefills."""
    attention_ratio: float | None = None
    """The same of `attention_ms`."""


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print; rows are written anew after each contender, so that a stop loses nothing."""
    args = _arguments(words)
    device = torch.device(args.device)
    rows: list[Row] = []
    notes: list[str] = []
    ends = time.monotonic() + args.seconds
    model = random_llama(args)

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        gate = _random_gate(Path(folder), args)
        for length in sorted(args.lengths, reverse=True):
            ids = torch.randint(3, model.config.vocab_size, (1, length), device=device)
            here: list[Row] = []
            for name, run in _contenders(model, args.method or METHODS, gate):
                what = f"{name} at {length_name(length)}"
                if time.monotonic() > ends:
                    notes.append(f"{what}: left out, {args.seconds:g} s were over")
                    continue
                try:
                    with run() as density:
                        here.append(_measured(model, ids, name, density, args.repeats))
                except Exception as error:  # Triton's own errors have no common base but this
                    line = (str(error).splitlines() or [type(error).__name__])[0][:300]
                    notes.append(f"{what}: not measured: {line}")
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                _compared(here)
                rows[:] = [row for row in rows if row.tokens != length] + here
                write_figures(args, words, rows, notes=notes)
            print(table(here), flush=True)
    for note in notes:
        print(note, flush=True)
    write_figures(args, words, rows, notes=notes)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        f"| {length_name(rows[0].tokens) if rows else ''} | prefill, ms | full / this | attention, ms | "
        "full / this | density | GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row.ms:.1f}",
            _figure(row.ratio, ".2f"),
            _figure(row.attention_ms, ".1f"),
            _figure(row.attention_ratio, ".2f"),
            _figure(row.density, ".3f"),
            _figure(None if row.peak_bytes is None else row.peak_bytes / 2**30, ".2f"),
        ]
        lines.append(f"| {row.what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def random_llama(args: argparse.Namespace) -> LlamaForCausalLM:
    """A Llama of transformers."""
    config = LlamaConfig(**shape_of(args), rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    return made(lambda: LlamaForCausalLM(config), args)


def _contenders(
    model: LlamaForCausalLM, specs: Sequence[str], gate: str
) -> Iterator[tuple[str, Callable[[], contextlib.AbstractContextManager[Callable[[], float | None]]]]]:
    """Names, and what puts each on the model while its context is open; it gives what density was read."""

    @contextlib.contextmanager
    def plain(implementation: str, kernel: SDPBackend | None) -> Iterator[Callable[[], float | None]]:
        before = model.config._attn_implementation
        model.set_attn_implementation(implementation)
        try:
            with sdpa_kernel(kernel) if kernel is not None else contextlib.nullcontext():
                yield lambda: None
        finally:
            model.set_attn_implementation(before)

    @contextlib.contextmanager
    def under(spec: str) -> Iterator[Callable[[], float | None]]:
        with attach(model, _fast(spec, gate)) as attached:

            def density() -> float:
                counts = attached.reads.prefill
                return counts.read / counts.dense

            yield density

    yield "rest", lambda: plain(_REST, None)
    yield "full", lambda: plain("sdpa", None)
    if model.device.type == "cuda":
        yield "full, cuDNN", lambda: plain("sdpa", SDPBackend.CUDNN_ATTENTION)
    for spec in specs:
        yield spec, lambda spec=spec: under(spec)  # type: ignore[misc]  # its default is the loop's own


def _fast(spec: str, gate: str) -> Method:
    options = ["fast=true"] + ([f"weights={gate}"] if spec.startswith("seer") else [])
    return parse_method(f"{spec}{',' if ':' in spec else ':'}{','.join(options)}")


def _measured(
    model: LlamaForCausalLM, ids: Tensor, what: str, density: Callable[[], float | None], repeats: int
) -> Row:
    """Medians behind a first run, which compiles."""
    gpu = ids.device.type == "cuda"

    def once() -> float:
        if gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        model(ids, use_cache=False, logits_to_keep=1)
        if gpu:
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - begin)

    peak = None
    once()
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once()
        peak = torch.cuda.max_memory_allocated() - before
    times = [once() for _ in range(repeats)]
    spread = (min(times), max(times))
    return Row(ids.shape[1], what, statistics.median(times), spread, density(), peak)


def _compared(rows: list[Row]) -> None:
    """Put in what follows from the model without attention and the faster full one."""
    rest = next((row.ms for row in rows if row.what == "rest"), None)
    full = min((row.ms for row in rows if row.what.startswith("full")), default=None)
    for at, row in enumerate(rows):
        if row.what == "rest":
            continue
        own = None if rest is None else row.ms - rest
        of_full = None if rest is None or full is None else full - rest
        comparable = own is not None and of_full is not None and own > 0
        rows[at] = Row(
            **{
                **{name: getattr(row, name) for name in Row.__slots__},
                "attention_ms": own,
                "ratio": None if full is None else full / row.ms,
                "attention_ratio": of_full / own if comparable and own and of_full is not None else None,
            }
        )


def _without_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: object
) -> tuple[Tensor, None]:
    return query.transpose(1, 2).contiguous(), None


AttentionInterface.register(_REST, _without_attention)
AttentionMaskInterface.register(_REST, sdpa_mask)


def _random_gate(folder: Path, args: argparse.Namespace) -> str:
    from safetensors.torch import save_file

    name = "model.layers.{}.self_attn.attn_gate.mask_linear_k.weight"
    shape = (args.heads, 3 * args.head_dim, args.head_dim)
    save_file(
        {name.format(layer): torch.randn(shape) for layer in range(args.layers)}, folder / "gate.safetensors"
    )
    return str(folder)


def _figure(x: float | None, form: str) -> str:
    return "" if x is None else format(x, form)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shape(parser)
    parser.add_argument(
        "--method",
        action="append",
        help="NAME:BUDGET,OPTION=VALUE,..., again for more; default: the authors' sizes",
    )
    add_timing(parser)
    parser.add_argument("--seconds", type=float, default=300, help="what would begin later is left out")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
