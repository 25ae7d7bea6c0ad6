"""What a format declares, and strict reading of its config.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from nsa_models.checkpoints import ModelLoadError

FORCED_BLOCKS: Mapping[str, tuple[int, int]] = MappingProxyType({"paper": (1, 2), "own": (0, 1)})
"""Rules by name: how many of the first blocks, and of the last up to a token's own, it always selects."""
READINGS = ("nsa", "selected", "full")
"""All three branches; the selected branch alone; full attention under the selected branch's gate."""

# Keys that transformers writes into any config.json, of itself, of how text is generated or of classifiers.
_OF_TRANSFORMERS = frozenset(
    {
        *(name for name in PreTrainedConfig().to_dict() if name != "tie_word_embeddings"),
        *GenerationConfig().to_dict(),
        *("torch_dtype", "auto_map", "base_model_tp_plan", "pruned_heads", "torchscript", "use_bfloat16"),
        *("tf_legacy_loss", "is_decoder", "add_cross_attention", "cross_attention_hidden_size", "prefix"),
        *(
            "tie_encoder_decoder",
            "finetuning_task",
            "tokenizer_class",
            "sep_token_id",
            "transformers_weights",
        ),
        *("task_specific_params", "attn_implementation", "_attn_implementation_autoset", "_commit_hash"),
    }
)
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What such a checkpoint's files may not say; None = what the format's own code does today.

    Raises:
        ModelLoadError: A name that isn't one of them.
    """

    forced_blocks: str | None = None
    """One of `FORCED_BLOCKS`."""
    reading: str | None = None
    """One of `READINGS`."""

    def __post_init__(self) -> None:
        """Checks the names."""
        for name, allowed in (("forced_blocks", FORCED_BLOCKS), ("reading", READINGS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ModelLoadError(f"{name} must be {' or '.join(allowed)}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """A foreign config as this decoder has it."""

    fields: Mapping[str, Any]
    """Fields of `NSADecoderConfig`."""
    notes: tuple[str, ...] = ()
    """What was decided that the files don't say, for whoever reads the scores."""
    changes: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    """What is done to a tensor beside its new name, by the end of that name."""
    untied: bool = False
    """The head is the embeddings there, and not here, where `changes` make two of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How another trainer writes its NSA checkpoints."""

    model_type: str
    """As config.json has it."""
    outside: Mapping[str, str]
    """Names of the tensors outside of layers, here and there."""
    layer: Mapping[str, str]
    """Names of a layer's tensors behind `model.layers.N.`, here and there."""
    ignored: tuple[str, ...]
    """Ends of the names of tensors that are computed anew: RoPE's frequencies."""
    read: Callable[[Fields, Mapping[str, tuple[int, ...]], Choices], Meaning]
    """(config.json, shapes of the tensors by their foreign names, choices) -> what they mean. Where the
    weights aren't there yet, there are no shapes. Raises ModelLoadError for what can't be computed."""

    def renamed(self, name: str) -> str | None:
        """A tensor's name here, or None for one that isn't read.

        Raises:
            KeyError: The format has no such tensor.
        """
        if name.endswith(self.ignored):
            return None
        inside = _LAYER.fullmatch(name)
        if inside is None:
            return self.outside[name]
        return f"model.layers.{inside[1]}.{self.layer[inside[2]]}"


class Fields:
    """A foreign config.json, each key of which is asked for, or refused in the end."""

    def __init__(self, spec: str, values: Mapping[str, Any]) -> None:
        """`spec` is the model as the user named it."""
        self.spec = spec
        self._values = values
        self._asked: set[str] = set()

    def refuse(self, why: str) -> ModelLoadError:
        """The error to raise, as the user reads it."""
        return ModelLoadError(f"{self.spec}: {why}")

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - any value of JSON
        """A value, or the default of the format's own code."""
        self._asked.add(name)
        return self._values.get(name, default)

    def whole(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of `least` at least; without a default it has to be there.

        Raises:
            ModelLoadError: It is something else.
        """
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.refuse(f"config.json says {name} {value!r}; expected a whole number from {least} on")
        return value

    def only(self, name: str, *allowed: object, why: str) -> None:
        """A key that may have only these values, the first of which is its default.

        Raises:
            ModelLoadError: It has another.
        """
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise self.refuse(f"config.json says {name} {value!r}, and {why}")

    def ignore(self, *names: str) -> None:
        """Keys that change nothing in an evaluation."""
        self._asked.update(names)

    def check_all_read(self) -> None:
        """Refuse keys that nobody asked for.

        Raises:
            ModelLoadError: There are some.
        """
        strange = sorted(set(self._values) - self._asked - _OF_TRANSFORMERS)
        if strange:
            raise self.refuse(
                f"config.json has keys that this version doesn't know for model_type "
                f"{self._values.get('model_type')!r}: {', '.join(strange)}; what they change can't be told. "
                "If they change nothing, take them out of a copy of the file"
            )


def rope_parameters(given: Fields) -> dict[str, Any]:
    """RoPE as transformers has it now: older configs keep its base and its scaling apart."""
    theta = given.get("rope_theta", 10000.0)
    scaling = given.get("rope_scaling")
    whole = given.get("rope_parameters")
    rope = {"rope_type": "default", "rope_theta": theta, **(scaling or {}), **(whole or {})}
    rope["rope_type"] = rope.pop("type", rope["rope_type"])
    return rope


def mean_pooled_blocks(*, block: int, count: int, window: int, forced: tuple[int, int]) -> dict[str, Any]:
    """Fields of a decoder with one K/V, whose blocks are compressed to the mean of their rotated keys.

    Args:
        block: Tokens of a block, compressed or selected.
        count: Blocks that a query selects.
        window: Tokens of the window; 0 for none.
        forced: Blocks that are always selected: leading ones, and the query's own with those before it.
    """
    first, last = forced
    return {
        "nsa_block": block,
        "nsa_stride": block,
        "nsa_select_block": block,
        "nsa_select_count": count,
        "nsa_window": window or 1,
        "nsa_compression": "mean",
        "nsa_share_kv": True,
        "nsa_compress_rotated": True,
        "nsa_first_blocks": first,
        "nsa_last_blocks": last,
    }


def special_tokens(given: Fields) -> dict[str, Any]:
    """Ids of padding, beginning and end, as a Llama's config.json names them."""
    return {
        "pad_token_id": given.get("pad_token_id"),
        "bos_token_id": given.get("bos_token_id", 1),
        "eos_token_id": given.get("eos_token_id", 2),
    }


def next_power_of_2(number: int) -> int:
    """The least power of 2 that is no smaller."""
    return 1 << (number - 1).bit_length()


def fewer_blocks(block: int, named: int, count: int) -> str:
    """The note on kernels whose list of the best blocks is too short for so many."""
    return (
        f"block_size {block} is under twice block_counts {named}: the kernels that it was trained with keep "
        f"only the {block // 2} best blocks out of every {block}; here the {count} best of all are selected, "
        "as the definition says"
    )
