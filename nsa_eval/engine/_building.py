"""An engine from lm-eval's `--model nsa-eval --model_args KEY=VALUE,...`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.api.registry import model_registry, register_model
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsa_eval.config import EngineSpec, ModelSpec
from nsa_eval.errors import UserError
from nsa_settings import did_you_mean

NAME = "nsa-eval"
"""What lm-eval knows the engine by."""

# The same keys as in a config, checked by the same classes.
_MODEL = ("dtype", "device", "backend", "revision", "trust_remote_code", "max_length")
_ENGINE = tuple(EngineSpec.model_fields)
_KEYS = ("pretrained", *_MODEL, *_ENGINE)


def build(
    arguments: Mapping[str, Any], additional: Mapping[str, Any] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Load what lm-eval's model arguments name.

    Args:
        arguments: `--model_args`: `pretrained` (zoo:NAME, a folder or a hub id), and the keys of a config's
            model and engine.
        additional: lm-eval's own flags, `batch_size` and `device`; they yield to `arguments`.

    Returns:
        Model, tokenizer, and the other arguments of `Engine`.

    Raises:
        UserError: An argument that is unknown or out of range, or no `pretrained`.
        ModelLoadError: A checkpoint that can't be loaded.
    """
    import nsa_models

    given = {key: value for key, value in (additional or {}).items() if value is not None}
    given.pop("max_batch_size", None)  # "auto" needs no bound: it goes by tokens and memory
    given |= arguments
    for key in given:
        if key not in _KEYS:
            raise UserError(f"--model_args {key}: unknown argument{did_you_mean(key, _KEYS)}")
    if not given.get("pretrained"):
        raise UserError(
            f"--model {NAME} names no checkpoint: give --model_args pretrained=PATH (zoo:NAME, a folder or a "
            "hub id)"
        )
    if "revision" in given:
        given["revision"] = str(given["revision"])  # lm-eval reads one of digits as a number
    if "batch_size" in given:
        given["batch_size"] = _batch_size(given["batch_size"])
    try:
        model = ModelSpec.model_validate(
            {"path": str(given["pretrained"]), **{key: given[key] for key in _MODEL if key in given}}
        )
        engine = EngineSpec.model_validate({key: given[key] for key in _ENGINE if key in given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(
            f"--model_args {first['loc'][-1]}={first['input']}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    tokenizer = nsa_models.load_tokenizer(model.path, **model.source)
    weights = nsa_models.load_model(
        model.path, dtype=model.dtype, device=model.device, backend=model.backend, **model.source
    )
    return weights, tokenizer, {"max_length": model.max_length, **engine.model_dump()}


def register(engine: type[Any]) -> None:
    """Let lm-eval find the engine by its name, once, whoever was first: an import or its entry point."""
    if NAME not in model_registry:
        register_model(NAME)(engine)


def _batch_size(value: object) -> object:
    """lm-eval's flag is text: `8`, `auto`, or `auto:4` (which tries anew; ours never has to)."""
    text = str(value)
    if text.startswith("auto"):
        return "auto"
    return int(text) if text.isdecimal() and text.isascii() else value
