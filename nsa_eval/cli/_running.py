"""Commands that evaluate: run, eval; and validate. Those of task families are in `_family.py`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nsa_eval._words import counted
from nsa_eval.cli._app import app, examples
from nsa_eval.cli._errors import guarded
from nsa_eval.cli._given import (
    engine_given,
    metadata_given,
    model_keys_given,
    models_given,
    pairs_given,
    seed_given,
)
from nsa_eval.cli._options import (
    CONFIG,
    BatchSizeOption,
    ChatTemplateOption,
    Device,
    Dtype,
    MethodOption,
    Seed,
    Set,
    SweepOption,
    Truncation,
)
from nsa_eval.cli._starting import RunFlags, start, takes_run_flags


@app.command(
    "run",
    epilog=examples(
        "nsa-eval run configs/quickstart.yaml",
        "nsa-eval run quickstart -o runs/trial --limit 3",
        "nsa-eval run my.yaml --set models.nsa.dtype=bfloat16 --set 'tasks.0.lengths=[1k, 4k]'",
        "nsa-eval run my.yaml --dry-run",
    ),
)
@guarded
@takes_run_flags
def run_command(
    config: Annotated[str, CONFIG],
    *,
    flags: RunFlags,
) -> None:
    """Evaluate the models of a config on its tasks, compare them and write a report.

    Started again with the same output folder, or given a run's folder instead of a config, it goes on where
    that run stopped: finished responses are never asked for twice.
    """
    start(config, flags)


@app.command(
    "eval",
    epilog=examples(
        "nsa-eval eval --model zoo:twin-nsa-64k --tasks needle_single --set 'tasks.0.lengths=[1k, 4k]'",
        "nsa-eval eval --model meta-llama/Llama-3.2-1B --tasks arc_easy,gsm8k --num_fewshot 5 --limit 99",
        "nsa-eval eval --model hf --model_args pretrained=./ckpt,dtype=float16 --tasks ifeval --limit 0.1",
    ),
)
@guarded
@takes_run_flags
def eval_command(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="A checkpoint: zoo:NAME, a folder or a hub id; give it again for more models. "
            "`hf` as in lm-eval: the checkpoint then stands in --model_args pretrained=.",
            show_default=False,
        ),
    ],
    tasks: Annotated[
        list[str], typer.Option("--tasks", "-t", help="Task names, separated by commas.", show_default=False)
    ],
    model_args: Annotated[
        str | None,
        typer.Option(
            "--model_args",
            "-a",
            help="KEY=VALUE,...: pretrained, dtype, revision, max_length, ... of every model.",
            show_default=False,
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num_fewshot", "-f", min=0, help="Solved examples before each question.", show_default=False
        ),
    ] = None,
    batch_size: BatchSizeOption = None,
    device: Device = None,
    dtype: Dtype = None,
    apply_chat_template: ChatTemplateOption = None,
    system_instruction: Annotated[
        str | None,
        typer.Option("--system_instruction", help="Text put before every prompt.", show_default=False),
    ] = None,
    gen_kwargs: Annotated[
        str | None,
        typer.Option("--gen_kwargs", help="KEY=VALUE,...: generation settings.", show_default=False),
    ] = None,
    metadata: Annotated[
        str | None,
        typer.Option(
            "--metadata",
            help="What tasks read from their metadata, as JSON or KEY=VALUE,...",
            show_default=False,
        ),
    ] = None,
    include_path: Annotated[
        list[str] | None,
        typer.Option("--include_path", help="Folder with more task YAML files.", show_default=False),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust_remote_code", help="Run the Python code that comes with the checkpoint.")
    ] = False,
    seed: Seed = None,
    truncation: Truncation = None,
    method: MethodOption = None,
    sweep: SweepOption = None,
    *,
    flags: RunFlags,
) -> None:
    """Evaluate checkpoints on tasks without a config file.

    Flags that lm-eval has too mean the same here, and its model classes go by their names (vllm, sglang,
    local-completions, ...); hf is answered by the engine, with the same token ids and scores. Two flags
    differ in what they default to: samples are always logged, and a prompt that is too long is an error
    (lm-eval cuts its start silently: --truncation left).
    """
    from nsa_eval.from_arguments import evaluate_config, with_variants

    shared = model_keys_given(
        device=device, dtype=dtype, chat_template=apply_chat_template, system_instruction=system_instruction
    )
    if trust_remote_code:
        shared["trust_remote_code"] = True
    models = [entry | shared for entry in models_given(model, pairs_given(model_args, "--model_args"))]
    data = evaluate_config(
        with_variants(models, methods=method or (), sweeps=sweep or ()),
        ",".join(tasks),
        num_fewshot=num_fewshot,
        gen_kwargs=pairs_given(gen_kwargs, "--gen_kwargs"),
        metadata=metadata_given(metadata),
        seed=seed_given(seed),
        engine=engine_given(batch_size, truncation),
        include_path=include_path,
    )
    start(data, flags)


@app.command(
    "validate",
    epilog=examples("nsa-eval validate configs/quickstart.yaml", "nsa-eval validate my.yaml --set limit=3"),
)
@guarded
def validate_command(config: Annotated[str, CONFIG], overrides: Set = None) -> None:
    """Check a config: keys, types, names of tasks and checkpoints, folders. Loads nothing."""
    from nsa_eval.config import load_config
    from nsa_eval.plan import make_plan

    resolved = load_config(config, overrides or ())
    plan = make_plan(resolved)
    tasks = {job.task.label for job in plan.jobs}
    jobs = f"{counted(len(resolved.models), 'model')} x {counted(len(tasks), 'task')}"
    typer.echo(f"{config}: fine: {jobs}, {_size(plan)}")


def _size(plan: Any) -> str:  # noqa: ANN401  (Plan, whose import waits until it is needed)
    bound = "up to " if plan.at_most else ""
    text = f"{counted(plan.samples, 'sample')}, {bound}{plan.tokens:,} tokens"
    return text if plan.complete else f"{text} and those of tasks whose size only their data tell"
