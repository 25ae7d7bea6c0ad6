"""Weights to begin with: those of a checkpoint of the same shape, or of an NSA model's dense twin."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nsa_models.configuration import BRANCHES
from nsa_models.modeling import NSADecoderForCausalLM


def warm_start(model: NSADecoderForCausalLM, folder: Path) -> None:
    """Load a checkpoint's weights into `model`.

    A dense twin's K/V projection becomes that of each of NSA's branches; gates and compression, which it
    lacks, stay as they are.

    Raises:
        ValueError: The folder holds no checkpoint of this decoder, or one of another shape.
    """
    try:
        given = NSADecoderForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except Exception as error:  # transformers raises errors of every kind
        raise ValueError(f"init_from: {folder} can't be loaded: {str(error).splitlines()[0]}") from error
    weights = given.state_dict()
    if model.config.attention == "nsa" and given.config.attention == "full":
        weights = _for_branches(weights, 1 if model.config.nsa_share_kv else len(BRANCHES))
    own = model.state_dict()
    fresh = {name for name in own if ".g_proj." in name or "_compress." in name}
    odd = [name for name, weight in own.items() if not _fits(weights.get(name), weight, name in fresh)]
    odd += [name for name in weights if name not in own]
    if odd:
        raise ValueError(f"init_from: {folder} has another shape than the recipe's model ({odd[0]})")
    model.load_state_dict({**own, **weights})


def _fits(given: Tensor | None, own: Tensor, may_miss: bool) -> bool:
    return may_miss if given is None else given.shape == own.shape


def _for_branches(dense: dict[str, Tensor], sets: int) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for name, weight in dense.items():
        if ".k_norm." in name:
            made |= {name.replace(".k_norm.", f".k_norms.{i}."): weight for i in range(sets)}
        elif ".k_proj." in name or ".v_proj." in name:
            made[name] = weight.repeat(
                sets, *[1] * (weight.dim() - 1)
            )  # a projection's rows are (branch, head)
        else:
            made[name] = weight
    return made
