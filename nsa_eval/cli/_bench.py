"""Commands that measure: bench kernels, bench show."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_eval.cli._app import app, examples
from nsa_eval.cli._errors import guarded

if TYPE_CHECKING:
    from nsa_kernels.bench import Measurement

bench_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(bench_app, name="bench", help="Measure the attention kernels on this machine's GPU.")


class Phi(StrEnum):
    """Compressions."""

    mean = "mean"
    linear = "linear"
    mlp = "mlp"


class Dtype(StrEnum):
    """Dtypes of the inputs."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@bench_app.command(
    "kernels",
    epilog=examples(
        "nsa-eval bench kernels -o kernels.json",
        "nsa-eval bench kernels --lengths 8k,64k --parts fwd,bwd",
        "nsa-eval bench kernels --phi mlp --head-dim 192 --value-dim 128 --parts stages --lengths 64k",
    ),
)
@guarded
def kernels_command(
    lengths: Annotated[
        str, typer.Option("--lengths", help="Tokens of prefill and training; k = 1024.")
    ] = "8k,16k,32k,64k,128k",
    parts: Annotated[
        str, typer.Option("--parts", help="Out of fwd, bwd, decode, stages.")
    ] = "fwd,bwd,decode,stages",
    decode_lengths: Annotated[
        str, typer.Option("--decode-lengths", help="Tokens in the caches of decode.")
    ] = "8k,64k,128k",
    decode_batches: Annotated[str, typer.Option("--decode-batches", help="Rows of decode.")] = "1,16",
    heads: Annotated[int, typer.Option("--heads", help="Query heads.")] = 64,
    kv_heads: Annotated[int, typer.Option("--kv-heads", help="KV heads.")] = 4,
    head_dim: Annotated[int, typer.Option("--head-dim", help="Width of queries and keys.")] = 128,
    value_dim: Annotated[
        int | None,
        typer.Option("--value-dim", help="Width of values. Default: that of keys.", show_default=False),
    ] = None,
    block: Annotated[int, typer.Option("--block", help="l: tokens in a compression block.")] = 32,
    stride: Annotated[int, typer.Option("--stride", help="d: tokens from one to the next.")] = 16,
    select_block: Annotated[
        int, typer.Option("--select-block", help="l': tokens in a selection block.")
    ] = 64,
    select_count: Annotated[int, typer.Option("--select-count", help="n: blocks selected.")] = 16,
    window: Annotated[int, typer.Option("--window", help="w: tokens in the window.")] = 512,
    phi: Annotated[Phi, typer.Option("--phi", help="Compression of keys and values.")] = Phi.mean,
    phi_hidden: Annotated[int, typer.Option("--phi-hidden", help="Hidden units of --phi mlp.")] = 256,
    separate_kv: Annotated[
        bool, typer.Option("--separate-kv", help="The window branch has K/V of its own.")
    ] = False,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Of all inputs.")] = Dtype.bfloat16,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed runs of each contender.")] = 20,
    seconds: Annotated[
        float, typer.Option("--seconds", help="About how long each is timed at most; 3 runs at least.")
    ] = 2.0,
    backend: Annotated[str, typer.Option("--backend", help="NSA's backend.")] = "triton",
    peak_tflops: Annotated[
        float | None,
        typer.Option("--peak-tflops", help="Ceiling for the floors. Default: measured.", show_default=False),
    ] = None,
    peak_tbs: Annotated[
        float | None,
        typer.Option("--peak-tbs", help="The same for memory, in TB/s.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random inputs.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="JSON file; a figure goes beside it (.png, .svg).", show_default=False
        ),
    ] = None,
) -> None:
    """Time dense attention and NSA side by side: forward, backward, decode, and NSA's stages.

    Needs a CUDA GPU with Triton. Dense is the fastest of torch's SDPA backends. Every number
    is of this run on this machine.
    """
    from nsa_eval.bench import bench_kernels, draw
    from nsa_eval.errors import UserError
    from nsa_kernels import BlockGeometry
    from nsa_kernels.bench import Ceilings, Settings, parse_counts, parse_lengths, parse_names

    try:
        settings = Settings(
            lengths=parse_lengths(lengths),
            decode_lengths=parse_lengths(decode_lengths),
            decode_batches=parse_counts(decode_batches),
            parts=parse_names(parts),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=head_dim if value_dim is None else value_dim,
            geometry=BlockGeometry(
                block=block,
                stride=stride,
                select_block=select_block,
                select_count=select_count,
                window=window,
            ),
            phi=phi.value,
            phi_hidden=phi_hidden,
            shared_kv=not separate_kv,
            dtype=dtype.value,
            repeats=repeats,
            seconds=seconds,
            backend=backend,
            seed=seed,
        )
        ceilings = Ceilings.given(peak_tflops, peak_tbs)
    except ValueError as error:
        raise UserError(str(error)) from None
    result = bench_kernels(settings, output=output, ceilings=ceilings, command=["nsa-eval", *sys.argv[1:]])
    _show(result)
    if output is not None:
        typer.echo(f"measurement: {output}")
        if set(settings.parts) - {"stages"}:
            for path in draw(result, output.with_suffix("")):
                typer.echo(f"figure: {path}")


@bench_app.command(
    "show",
    epilog=examples(
        "nsa-eval bench show kernels.json", "nsa-eval bench show kernels.json --figure figures/kernels"
    ),
)
@guarded
def show_command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.json", help="What `bench kernels` wrote.", show_default=False)
    ],
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="Draw to FIGURE.png and FIGURE.svg.", show_default=False),
    ] = None,
) -> None:
    """Print the tables of a measurement again, and draw its figure; needs no GPU."""
    from nsa_eval.bench import draw, load_measurement

    result = load_measurement(file)
    _show(result)
    if figure is not None:
        for path in draw(result, figure):
            typer.echo(f"figure: {path}")


def _show(result: Measurement) -> None:
    from nsa_eval.cli._output import print_sheets
    from nsa_kernels.bench import heading, sheets

    print_sheets(heading(result), sheets(result), result.notes)
