"""A loaded checkpoint with fields of its config set anew, on the same weights; and what it runs on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from nsa_kernels import NUMERICS, choose_backend
from nsa_models.checkpoints import ModelLoadError
from nsa_models.configuration import NSADecoderConfig
from nsa_models.lower_right import IMPLEMENTATION
from nsa_models.methods import attached_to

_NOT_SETTINGS = ("model_type", "architectures", "dtype", "transformers_version")
"""Entries of config.json that say what a checkpoint is, and not how it works."""

_NOT_TELLING = ("architectures", "dtype", "transformers_version", "nsa_backend")
"""Entries that say how a checkpoint was saved, or what is recorded as it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningBackend:
    """What computes a model's attention: not what was asked for, but what runs."""

    name: str
    """`torch`, `triton` or `reference` for our decoders' NSA; else transformers' attention: `sdpa`, ..."""
    package: str
    """The package that it comes from, with its version: `triton 3.7.1`."""
    numerics: int | None = None
    """Version of what this project's attention computes, raised whenever its results change; None where a
    model's own is left as it is."""

    def __str__(self) -> str:
        """As a report shows it."""
        return f"{self.name} ({self.package})" + (f", numerics {self.numerics}" if self.numerics else "")


def running_backend(model: PreTrainedModel) -> RunningBackend:
    """Say what computes a loaded model's attention where it is now, in the dtype that it has."""
    config = model.config
    if getattr(config, "attention", None) != "nsa":
        name = str(getattr(config, "_attn_implementation", None) or "eager")
        ours = (
            isinstance(config, NSADecoderConfig) or name == IMPLEMENTATION or attached_to(model) is not None
        )
        return RunningBackend(name=name, package=_versioned("torch"), numerics=NUMERICS if ours else None)
    name = config.nsa_backend
    if name == "auto":
        name = choose_backend(
            model.device,
            model.dtype,
            group=config.num_attention_heads // config.num_key_value_heads,
            width=max(config.head_dim, config.v_head_dim),
            geometry=config.geometry,
        )
    return RunningBackend(
        name=name, package=_versioned("triton" if name == "triton" else "torch"), numerics=NUMERICS
    )


def with_fields(
    model: PreTrainedModel, fields: Mapping[str, Any], *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Make a model of the same weights whose config has other values in some fields.

    The weights are shared, not copied; everything else (rotary tables, masks, shapes of blocks) is made anew
    from the config, so it doesn't matter which fields a model reads when.

    Args:
        model: A loaded model; it stays as it is.
        fields: Names of its config's fields, with their new values.
        trust_remote_code: As the model was loaded.

    Returns:
        The model itself where nothing changes, else another in eval mode on the same device.

    Raises:
        ModelLoadError: A field that the config doesn't have, a value that it refuses, or a field that the
            shape of the weights depends on.
    """
    changed = changed_fields(model.config, fields)
    if not changed:
        return model
    said = _said(changed)
    config = config_with(model.config, changed)
    config._attn_implementation = model.config._attn_implementation
    try:
        with _without_initial_values():
            twin: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=model.dtype, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # constructors too
        raise _impossible(changed, error) from error
    weights = model.state_dict()
    shapes = {name: tuple(weight.shape) for name, weight in twin.state_dict().items()}
    odd = [
        name
        for name in {*weights, *shapes}
        if tuple(getattr(weights.get(name), "shape", ())) != shapes.get(name)
    ]
    if odd:
        raise ModelLoadError(
            f"{said}: the weights have another shape than that ({sorted(odd)[0]}); only fields that no "
            "weight's shape depends on can be set"
        )
    twin.load_state_dict(weights, assign=True)
    twin.tie_weights()
    twin.generation_config = model.generation_config
    return twin.to(model.device).eval()  # what the config made is still on the CPU; weights are there already


def config_with(config: PreTrainedConfig, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """A config with other values in some fields; the given one stays as it is.

    Raises:
        ModelLoadError: A field that the config doesn't have, or a value that it refuses.
    """
    changed = changed_fields(config, fields)
    try:
        made = type(config).from_dict(copy.deepcopy({**config.to_dict(), **changed}))
    except Exception as error:  # configs raise errors of every kind for a value out of range
        raise _impossible(changed, error) from error
    made._name_or_path = config._name_or_path
    return made


def changed_fields(config: PreTrainedConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the fields whose value isn't the config's own already.

    Raises:
        ModelLoadError: A field that the config doesn't have.
    """
    own = config.to_dict()
    for name in fields:
        if name not in own or name in _NOT_SETTINGS:
            near = get_close_matches(name, own, n=1)
            raise ModelLoadError(
                f"{config._name_or_path}: its config has no field {name!r} to set"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return {name: value for name, value in fields.items() if own[name] != value}


def plain_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """A config's numbers, texts and flags by name (`rope_parameters.factor`), to tell checkpoints apart."""
    found: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if name.startswith("_") or name in _NOT_TELLING:
            continue
        inner = (
            {f"{name}.{key}": item for key, item in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        found |= {key: item for key, item in inner.items() if isinstance(item, str | int | float)}
    return found


def _said(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in fields.items())


def _impossible(fields: Mapping[str, Any], error: Exception) -> ModelLoadError:
    return ModelLoadError(f"{_said(fields)}: the model can't be made so: {str(error).splitlines()[0]}")


def _without_initial_values() -> Any:  # noqa: ANN401  (a context manager)
    """Random values for weights that are replaced at once would take longer than all the rest."""
    from transformers.initialization import no_init_weights

    return no_init_weights()


def _versioned(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
