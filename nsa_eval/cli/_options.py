"""The flags that several commands share, as typer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_LOOKS = 2
"""Documents of a cell that `--looks` without a number means."""
CONFIG = typer.Argument(
    help="A YAML file, a folder of an earlier run, or the name of a bundled config.", show_default=False
)
Output = Annotated[
    Path | None,
    typer.Option(
        "--output_path",
        "-o",
        help="Folder of the run. Default: runs/ and the run's name, or the earlier run that is named.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the config: engine.batch_size=4.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print jobs, samples, tokens, and time and memory as far as earlier runs tell; load nothing.",
    ),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="With --dry-run: load each model and measure it for some seconds, for the estimate.",
    ),
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="PATH",
        help="With --dry-run: a profile, or a folder of them, such as another machine's runs left.",
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace results in the output folder: of another config, of a model or task that has changed.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table: only the report's path.")]
LimitOption = Annotated[
    float | None,
    typer.Option(
        "--limit",
        "-L",
        help="Only so many samples of each task: a count, or a fraction below 1; of a grid evenly.",
        show_default=False,
    ),
]
LooksOption = Annotated[
    int | None,
    typer.Option(
        "--looks",
        metavar="[N]",
        min=0,
        help="Show whether the blocks that models with NSA choose hold the answer: N documents of each cell "
        f"of a needle task are read once more (without a number: {DEFAULT_LOOKS}).",
        show_default=False,
    ),
]
UnsafeCode = Annotated[
    bool,
    typer.Option(
        "--confirm_run_unsafe_code",
        help="Run the code that models write, where a task does: with your rights, without walls.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ... (default: auto)", show_default=False)
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="auto, float32, float16 or bfloat16. (default: auto)", show_default=False),
]
BatchSizeOption = Annotated[
    str | None,
    typer.Option(
        "--batch_size", "-b", help="Rows that run together, or auto. (default: auto)", show_default=False
    ),
]
Truncation = Annotated[
    str | None,
    typer.Option(
        "--truncation",
        help="For prompts that are too long: error, left or middle. (default: error)",
        show_default=False,
    ),
]
Seed = Annotated[
    str | None,
    typer.Option(
        "--seed",
        help="One seed for everything, or four: python,numpy,torch,fewshot. (default: 0,1234,1234,1234)",
        show_default=False,
    ),
]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--apply_chat_template",
        metavar="[NAME]",
        help="Put prompts through the tokenizer's chat template (or the one of this name).",
        show_default=False,
    ),
]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        "-m",
        help="A checkpoint: zoo:NAME, a folder or a hub id; the first of several is the baseline.",
        show_default=False,
    ),
]
WithTemplate = Annotated[
    bool, typer.Option("--apply_chat_template", help="Put prompts through the tokenizer's chat template.")
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME:BUDGET",
        help="Evaluate the dense models under a sparse-attention method too (nsa-eval ls methods): "
        "quest:2560, or with more budgets and options quest:1k,2k,reading=kernel; quest:5%,10% of a prompt; "
        "xattention:tau=0.9 where there is no budget.",
        show_default=False,
    ),
]
SweepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="KEY=V1,V2",
        help="Evaluate the models with a field of their config.json set too: nsa_select_count=4,8.",
        show_default=False,
    ),
]
ExecutorOption = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help="Who answers: local (this process) or ray (workers on all GPUs). (default: local)",
        show_default=False,
    ),
]
