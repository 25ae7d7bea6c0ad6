"""The flags that several commands share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nsa_eval.cli._lm_eval_flags import refuse_model_args
from nsa_eval.errors import UserError

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


_OURS = frozenset({"hf", "hf-auto", "huggingface", "nsa-eval"})
"""Names of lm-eval's whose checkpoints the engine evaluates: the same token ids and scores."""


def models_given(names: list[str], model_args: dict[str, Any]) -> list[dict[str, Any]]:
    """The models of `eval`: `--model PATH`, or `--model hf --model_args pretrained=PATH` as in lm-eval."""
    from nsa_eval._paths import is_folder, user_path
    from nsa_eval.catalog import lm_eval_models

    if any(name in _OURS or name not in lm_eval_models() for name in names):
        refuse_model_args(model_args)
    named = dict(model_args)
    pretrained = model_args.pop("pretrained", None)
    if "revision" in model_args:  # lm-eval reads one of digits as a number
        model_args["revision"] = str(model_args["revision"])
    entries: list[dict[str, Any]] = []
    for name in names:
        if name not in _OURS and name in lm_eval_models() and not is_folder(user_path(name)):
            entries.append(_of_lm_eval(name, named))
            continue
        if name in _OURS:
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


def _of_lm_eval(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A model that one of lm-eval's own classes asks: `--model local-completions --model_args model=...`."""
    given = [key for key in ("model", "pretrained") if arguments.get(key)]
    if len(given) != 1:
        raise UserError(f"--model {name}: name the model once, by --model_args model=NAME or pretrained=PATH")
    others = {key: value for key, value in arguments.items() if key not in ("model", "pretrained")}
    return {"path": str(arguments[given[0]]), "lm": name, "lm_args": others}


def model_keys_given(*, chat_template: str | None, **keys: str | None) -> dict[str, Any]:
    given: dict[str, Any] = {key: value for key, value in keys.items() if value is not None}
    if chat_template is not None:
        given["chat_template"] = {"true": True, "false": False}.get(chat_template.lower(), chat_template)
    return given


def engine_given(batch_size: str | None, truncation: str | None) -> dict[str, Any] | None:
    keys: dict[str, Any] = {}
    if batch_size is not None:
        keys["batch_size"] = (
            int(batch_size) if batch_size.isdecimal() and batch_size.isascii() else batch_size
        )
    if truncation is not None:
        keys["truncation"] = truncation
    return keys or None


def pairs_given(text: str | None, flag: str) -> dict[str, Any]:
    """Read `a=1,b=[2,3]` or a JSON object by lm-eval's own parser, so that a flag means what it means there.

    Raises:
        UserError: Something else, or a key that is given twice.
    """
    if not (text or "").strip():
        return {}
    from lm_eval._cli.utils import key_val_to_dict, split_top_level, try_parse_json

    try:
        whole = try_parse_json(text)
        if isinstance(whole, dict):
            return whole
        keys = [part.partition("=")[0].strip() for part in split_top_level(str(text))]
        pairs = {key.strip(): value for key, value in key_val_to_dict(str(text)).items()}
    except (ValueError, RecursionError, MemoryError) as error:  # the last two: brackets a thousand deep
        said = f"{error}"[:200] or type(error).__name__
        raise UserError(
            f"{flag}: expected KEY=VALUE pairs separated by commas, or a JSON object: {said}"
        ) from None
    twice = sorted(key for key in set(keys) if keys.count(key) > 1)
    if twice:
        raise UserError(f"{flag} {text}: {', '.join(twice)} is given twice: keep one")
    return pairs


def seed_given(text: str | None) -> int | list[int | None] | None:
    if text is None:
        return None
    parts = [None if part.strip() == "None" else number_given(part, "--seed") for part in text.split(",")]
    for part in parts:
        if part is not None and not isinstance(part, int):
            raise UserError(f"--seed {text}: expected whole numbers, got {part}")
    whole = [part if part is None else int(part) for part in parts]
    return whole[0] if len(whole) == 1 else whole


def number_given(text: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{flag}: expected numbers separated by commas, got {text.strip()!r}") from None
    return int(value) if value.is_integer() else value
