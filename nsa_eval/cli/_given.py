"""What the texts of flags say, as keys of a config."""

from __future__ import annotations

import json
from typing import Any

from nsa_eval.cli._lm_eval_flags import refuse_model_args
from nsa_eval.errors import UserError

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
    """The keys of every model that flags set; `chat_template` is true, false or a template's name."""
    given: dict[str, Any] = {key: value for key, value in keys.items() if value is not None}
    if chat_template is not None:
        given["chat_template"] = {"true": True, "false": False}.get(chat_template.lower(), chat_template)
    return given


def engine_given(batch_size: str | None, truncation: str | None) -> dict[str, Any] | None:
    """The config's `engine`, where flags set any of it."""
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
    """The config's `seed`: one for everything or four, `None` for none, as lm-eval writes them."""
    if text is None:
        return None
    parts = [None if part.strip() == "None" else _number(part, "--seed") for part in text.split(",")]
    for part in parts:
        if part is not None and not isinstance(part, int):
            raise UserError(f"--seed {text}: expected whole numbers, got {part}")
    whole = [part if part is None else int(part) for part in parts]
    return whole[0] if len(whole) == 1 else whole


def metadata_given(text: str | None) -> dict[str, Any] | None:
    """Read `--metadata`: JSON, or KEY=VALUE pairs, as lm-eval does.

    Raises:
        UserError: Neither, or a list such as `[1k]`, which lm-eval's reader takes for a piece of text.
    """
    if text is None:
        return None
    if not text.lstrip().startswith("{"):
        pairs = pairs_given(text, "--metadata")
        for key, value in pairs.items():
            if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
                items = ",".join(f'"{item.strip()}"' for item in value[1:-1].split(","))
                raise UserError(
                    f"--metadata {key}={value[:80]}: in a list, text stands in quotes: [{items[:80]}]"
                )
        return pairs
    try:
        found: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--metadata {text[:80]}: not JSON ({str(error)[:120]})") from None
    return found


def _number(text: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{flag}: expected numbers separated by commas, got {text.strip()!r}") from None
    return int(value) if value.is_integer() else value
