"""`--method` and `--sweep`: variants of the models that a command line names."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nsa_eval.errors import UserError

MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME:BUDGET",
        help="Also evaluate the dense models under a sparse-attention method (nsa-eval ls methods): "
        "quest:2560, or with more budgets and options quest:1k,2k,reading=kernel.",
        show_default=False,
    ),
]
SweepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="KEY=V1,V2",
        help="Also evaluate the models with a field of their config.json set: nsa_select_count=4,8.",
        show_default=False,
    ),
]


def with_variants(
    models: list[dict[str, Any]], methods: list[str] | None, sweeps: list[str] | None
) -> list[dict[str, Any]]:
    """Add variants to those of the models that can have them, behind the checkpoint as it is.

    A method is for checkpoints with dense attention, a field for those whose config has it; of a hub id,
    whose config isn't here yet, both are taken to fit.

    Args:
        models: Entries of a config's `models`.
        methods: `NAME:BUDGET[,BUDGET...][,OPTION=VALUE...]`, any number.
        sweeps: `FIELD=VALUE[,VALUE...]`, any number.

    Raises:
        UserError: A text of another form, or a variant that fits none of the models.
    """
    wanted = [("--method " + text, {"method": _method(text)}) for text in methods or ()]
    wanted += [("--sweep " + text, {"set": _sweep(text)}) for text in sweeps or ()]
    if not wanted:
        return models
    entries = [{**model, "variants": [{}]} for model in models]
    for flag, variant in wanted:
        fitting = [entry for entry in entries if _fits(entry["path"], variant)]
        if not fitting:
            why = "are sparse already" if "method" in variant else "have no such field in their config"
            raise UserError(f"{flag}: the models {why}: {', '.join(entry['path'] for entry in entries)}")
        for entry in fitting:
            entry["variants"].append(variant)
    return entries


def _method(text: str) -> dict[str, Any]:
    name, colon, rest = text.partition(":")
    parts = [part.strip() for part in rest.split(",") if part.strip()]
    budgets = [part for part in parts if "=" not in part]
    if not name.strip() or not colon or not budgets:
        raise UserError(
            f"--method {text}: expected NAME:BUDGET, such as quest:2560 (nsa-eval ls methods lists the names)"
        )
    options = dict(part.split("=", 1) for part in parts if "=" in part)
    return {"name": name.strip(), "budget": budgets if len(budgets) > 1 else budgets[0], **options}


def _sweep(text: str) -> dict[str, Any]:
    from nsa_eval.config._yaml import YamlError, parse_yaml

    key, equals, values = text.partition("=")
    if not key.strip() or not equals or not values.strip():
        raise UserError(f"--sweep {text}: expected KEY=V1,V2, such as nsa_select_count=4,8")
    try:
        listed, _ = parse_yaml(f"[{values}]")
    except YamlError as error:
        raise UserError(f"--sweep {text}: the values are {error.message}") from None
    return {key.strip(): listed}


def _fits(path: str, variant: dict[str, Any]) -> bool:
    from nsa_eval.catalog import checkpoint_config

    config = checkpoint_config(path)
    if config is None:
        return True
    if "method" in variant:
        return config.get("attention") != "nsa"
    # Fields of a class's own may be left out of config.json: only ours are told apart here.
    ours = config.get("model_type") == "nsa_decoder"
    return all(
        not key.startswith("nsa_") or (ours and config.get("attention") == "nsa") for key in variant["set"]
    )
