"""Commands that evaluate: run, eval, one for each task family that has its own, validate."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from nsa_eval.cli._app import app, examples
from nsa_eval.cli._errors import guarded
from nsa_eval.errors import UserError
from nsa_tasks import FamilyCommand, Parameter, TaskFamily, families

_CONFIG = typer.Argument(
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
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print jobs, samples and tokens; load nothing.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the results of another config in the output folder.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table: only the report's path.")]
LimitOption = Annotated[
    float | None,
    typer.Option(
        "--limit",
        "-L",
        help="Only the first samples of each task: a count, or a fraction below 1.",
        show_default=False,
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
_FamilyModels = Annotated[
    list[str],
    typer.Option(
        "--model",
        "-m",
        help="A checkpoint: zoo:NAME, a folder or a hub id; the first of several is the baseline.",
        show_default=False,
    ),
]
_WithTemplate = Annotated[
    bool, typer.Option("--apply_chat_template", help="Put prompts through the tokenizer's chat template.")
]


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
def run_command(
    config: Annotated[str, _CONFIG],
    output: Output = None,
    overrides: Set = None,
    limit: LimitOption = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate the models of a config on its tasks, compare them and write a report.

    Started again with the same output folder, or given a run's folder instead of a config, it goes on where
    that run stopped: finished responses are never asked for twice.
    """
    _run(config, output, overrides, limit=limit, dry_run=dry_run, overwrite=overwrite, quiet=quiet)


@app.command(
    "eval",
    epilog=examples(
        "nsa-eval eval --model zoo:twin-nsa-v0 --tasks needle_single --set 'tasks.0.lengths=[512, 1k]'",
        "nsa-eval eval --model meta-llama/Llama-3.2-1B --tasks arc_easy,gsm8k --num_fewshot 5 --limit 99",
        "nsa-eval eval --model hf --model_args pretrained=./ckpt,dtype=float16 --tasks ifeval --limit 0.1",
    ),
)
@guarded
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
    limit: LimitOption = None,
    apply_chat_template: ChatTemplateOption = None,
    system_instruction: Annotated[
        str | None,
        typer.Option("--system_instruction", help="Text put before every prompt.", show_default=False),
    ] = None,
    gen_kwargs: Annotated[
        str | None,
        typer.Option("--gen_kwargs", help="KEY=VALUE,...: generation settings.", show_default=False),
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
    output: Output = None,
    overrides: Set = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate checkpoints on tasks without a config file.

    Flags that lm-eval has too mean the same here. Two differ in what they default to: samples are always
    logged, and a prompt that is too long is an error (lm-eval cuts its start silently: --truncation left).
    """
    from nsa_eval.quick import evaluate_config

    shared = _model_keys(
        device=device, dtype=dtype, chat_template=apply_chat_template, system_instruction=system_instruction
    )
    if trust_remote_code:
        shared["trust_remote_code"] = True
    data = evaluate_config(
        [entry | shared for entry in _models(model, _pairs(model_args, "--model_args"))],
        ",".join(tasks),
        num_fewshot=num_fewshot,
        gen_kwargs=_pairs(gen_kwargs, "--gen_kwargs"),
        seed=_seed(seed),
        engine=_engine(batch_size, truncation),
        include_path=include_path,
    )
    _run(data, output, overrides, limit=limit, dry_run=dry_run, overwrite=overwrite, quiet=quiet)


def _add_family_command(family: TaskFamily, command: FamilyCommand) -> None:
    """Register a task family's own command: its parameters are flags, the rest is the same for all."""
    known = {p.name: p for task in family.tasks for p in family.parameters(task)}

    def run_family(
        model: list[str],
        task: str,
        batch_size: str | None,
        device: str | None,
        dtype: str | None,
        apply_chat_template: bool,
        truncation: str | None,
        limit: float | None,
        output: Path | None,
        overrides: list[str] | None,
        dry_run: bool,
        overwrite: bool,
        quiet: bool,
        **params: str | None,
    ) -> None:
        from nsa_eval.quick import family_config

        shared = _model_keys(
            device=device, dtype=dtype, chat_template="true" if apply_chat_template else None
        )
        given: dict[str, Any] = {
            name: _parsed(known[name], text) for name, text in params.items() if text is not None
        }
        data = family_config(family.name, [{"path": path} | shared for path in model], task=task, **given)
        engine = _engine(batch_size, truncation)
        if engine:
            data["engine"] = engine
        _run(data, output, overrides, limit=limit, dry_run=dry_run, overwrite=overwrite, quiet=quiet)

    flags: dict[str, tuple[Any, Any]] = {
        "model": (_FamilyModels, inspect.Parameter.empty),
        **{
            name: (
                Annotated[
                    str | None,
                    typer.Option(f"--{name}", help=_sentence(known[name]), show_default=default is not None),
                ],
                default,
            )
            for name, default in command.options.items()
        },
        "task": (
            Annotated[str, typer.Option("--task", help=f"Which of its tasks: {', '.join(family.tasks)}.")],
            command.task,
        ),
        "batch_size": (BatchSizeOption, None),
        "device": (Device, None),
        "dtype": (Dtype, None),
        "apply_chat_template": (_WithTemplate, False),
        "truncation": (Truncation, None),
        "limit": (LimitOption, None),
        "output": (Output, None),
        "overrides": (Set, None),
        "dry_run": (DryRun, False),
        "overwrite": (Overwrite, False),
        "quiet": (Quiet, False),
    }
    # typer reads a function's signature; this one is known only now.
    run_family.__doc__ = command.summary
    run_family.__annotations__ = {name: annotation for name, (annotation, _) in flags.items()}
    run_family.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in flags.items()
        ]
    )
    app.command(family.name, epilog=examples(*command.examples))(guarded(run_family))


def _parsed(parameter: Parameter, text: str) -> object:
    try:
        return parameter.parse(text)
    except ValueError as error:
        raise UserError(f"--{parameter.name}: {error}") from None


def _sentence(parameter: Parameter) -> str:
    """A parameter's line of help as the command line writes them."""
    text = parameter.help[:1].upper() + parameter.help[1:]
    return f"{text} ({parameter.unit})." if parameter.unit not in ("name", "number") else f"{text}."


for _family in families().values():
    if _family.command is not None:
        _add_family_command(_family, _family.command)


@app.command(
    "validate",
    epilog=examples("nsa-eval validate configs/quickstart.yaml", "nsa-eval validate my.yaml --set limit=3"),
)
@guarded
def validate_command(config: Annotated[str, _CONFIG], overrides: Set = None) -> None:
    """Check a config: keys, types, names of tasks and checkpoints, folders. Loads nothing."""
    from nsa_eval.config import load_config
    from nsa_eval.plan import make_plan

    resolved = load_config(config, overrides or ())
    plan = make_plan(resolved)
    typer.echo(f"{config}: fine: {len(resolved.models)} models x {len(resolved.tasks)} tasks, {_size(plan)}")


def _run(
    config: str | dict[str, Any],
    output: Path | None,
    overrides: list[str] | None,
    *,
    limit: float | None,
    dry_run: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    from nsa_eval.cli._output import show_plan, show_result
    from nsa_eval.runner import run

    result = run(
        config,
        output=output,
        overrides=overrides or (),
        limit=limit,
        dry_run=dry_run,
        overwrite=overwrite,
        progress=False if quiet else None,
    )
    if dry_run:
        show_plan(result.plan)
    else:
        show_result(result, quiet=quiet)


def _size(plan: Any) -> str:  # noqa: ANN401  (Plan, whose import waits until it is needed)
    text = f"{plan.samples:,} samples, {plan.tokens:,} tokens"
    return text if plan.complete else f"{text} and what lm-eval's own tasks hold"


def _models(names: list[str], model_args: dict[str, Any]) -> list[dict[str, Any]]:
    """The models of `eval`: `--model PATH`, or `--model hf --model_args pretrained=PATH` as in lm-eval."""
    pretrained = model_args.pop("pretrained", None)
    entries = []
    for name in names:
        if name in {"hf", "hf-auto", "huggingface", "nsa-eval"}:
            if pretrained is None:
                raise UserError(
                    f"--model {name} names no checkpoint: give --model_args pretrained=PATH or --model PATH"
                )
            name = str(pretrained)
        elif pretrained is not None:
            raise UserError(
                f"the checkpoint is named twice: --model {name} and --model_args pretrained={pretrained}"
            )
        entries.append({"path": name} | model_args)
    return entries


def _model_keys(*, chat_template: str | None, **keys: str | None) -> dict[str, Any]:
    given: dict[str, Any] = {key: value for key, value in keys.items() if value is not None}
    if chat_template is not None:
        given["chat_template"] = {"true": True, "false": False}.get(chat_template.lower(), chat_template)
    return given


def _engine(batch_size: str | None, truncation: str | None) -> dict[str, Any] | None:
    keys: dict[str, Any] = {}
    if batch_size is not None:
        keys["batch_size"] = int(batch_size) if batch_size.isdigit() else batch_size
    if truncation is not None:
        keys["truncation"] = truncation
    return keys or None


def _pairs(text: str | None, flag: str) -> dict[str, Any]:
    """Read `a=1,b=[2,3]` with YAML's idea of numbers and lists."""
    import re

    from nsa_eval.config._yaml import YamlError, parse_yaml

    pairs: dict[str, Any] = {}
    for part in re.split(r",(?=\s*[\w.]+=)", text or ""):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{flag} {text}: expected KEY=VALUE pairs separated by commas, got {part!r}")
        try:
            pairs[key.strip()] = parse_yaml(value)[0]
        except YamlError as error:
            raise UserError(f"{flag} {part}: {error.message}") from None
    return pairs


def _seed(text: str | None) -> int | list[int | None] | None:
    if text is None:
        return None
    parts = [None if part.strip() == "None" else _number(part, "--seed") for part in text.split(",")]
    whole = [part if part is None else int(part) for part in parts]
    return whole[0] if len(whole) == 1 else whole


def _number(text: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{flag}: expected numbers separated by commas, got {text.strip()!r}") from None
    return int(value) if value.is_integer() else value
