"""The recipe: everything that a training run depends on, read strictly from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from huggingface_hub.errors import StrictDataclassError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from nsa_models.configuration import BRANCHES, NSADecoderConfig

# Fields of NSADecoderConfig that the tokenizer decides.
_FROM_TOKENIZER = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Checked = TypeVar("Checked", bound=BaseModel)


class RecipeError(ValueError):
    """A recipe that can't be read; the message names file, key and what is wrong."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextRecipe(_Strict):
    """Where the training text is and how it becomes tokens."""

    folder: Path
    """Folder with .txt or .jsonl files (a `text` field), plain, .gz or .xz; not read if there is a cache."""
    files: tuple[str, ...] = ()
    """Names of the folder's files to read; none named = all of them."""
    cache: Path
    """Folder for tokenizer, tokens and word list; made once, shared by both twins."""
    vocab_size: Annotated[int, Field(ge=259, le=65_536)] = 4096
    """Entries of the byte-level BPE, 256 bytes and 3 special tokens included; ids are kept in 16 bits."""
    tokenizer_sample: Positive = 20_000_000
    """Characters that the BPE is learned from."""
    max_tokens: Positive = 22_000_000
    """Tokens kept, taken evenly from all documents."""
    held_out: Share = 0.02
    """Share of documents kept for validation and never trained on."""


class FactsRecipe(_Strict):
    """How facts and questions are sown into the text."""

    tokens_per_fact: Positive | Annotated[dict[Positive, Positive], Field(min_length=1)] = 160
    """One fact, and one question about it, per so many tokens; or {length: tokens} for sequences up to each
    of these lengths (the last one's for all longer ones), so that long ones hold fewer."""
    final_quiz: Share = 0.25
    """Share of sequences whose questions all stand at the end, as in an evaluation."""
    far: Share = 0.4
    """Share of questions at a distance uniform over the rest of the sequence; others uniform in its log."""
    together: Share = 0.15
    """Share of sequences with a question about 2 to 4 facts at once (several keys, or values of one key)."""
    number: Share = 0.8
    """Share of facts whose value is a 7-digit number."""
    uuid: Share = 0.08
    """Share of facts whose value is a UUID; the rest are words."""

    def spacing(self, length: int) -> int:
        """Tokens per fact in a sequence of `length` tokens."""
        if isinstance(self.tokens_per_fact, int):
            return self.tokens_per_fact
        limits = sorted(self.tokens_per_fact)
        return self.tokens_per_fact[next((limit for limit in limits if length <= limit), limits[-1])]


class Stage(_Strict):
    """One step of the curriculum."""

    lengths: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Sequence lengths in tokens; step i of the stage uses lengths[i % len]."""
    until_answer_loss: float | None = None
    """Go on to the next stage when the running mean loss on answers is below this, nats; None = max_steps."""
    max_steps: Positive
    """Steps after which the stage ends in any case."""
    min_steps: Annotated[int, Field(ge=0)] = 0
    """Steps before which `until_answer_loss` doesn't end it."""
    select_count: Positive | None = None
    """n during this stage, with NSA; None = the model's. A small n early on makes the model learn what to
    select while it learns to retrieve: with n * l' near the length there is nothing to learn it from."""


class OptimRecipe(_Strict):
    """AdamW with warm-up, a constant plateau and a linear decay over the last stage."""

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    warmup_steps: Positive = 100
    final_lr_ratio: Share = 0.05
    """Learning rate at the end of the last stage, as a share of lr."""
    clip: float = 1.0
    """Largest gradient norm."""


class RankingRecipe(_Strict):
    """A loss that draws NSA's ranking of blocks towards the selected branch's own attention."""

    weight: Annotated[float, Field(gt=0.0)] = 0.5
    """Beside the mean loss on all tokens."""
    queries: Annotated[int, Field(ge=2)] = 128
    """Queries of each sequence that are asked, half of them where answers are predicted."""


class Recipe(_Strict):
    """A training run."""

    name: str
    """Name of the checkpoint."""
    output: Path
    """Folder for checkpoints, log and the exported model."""
    text: TextRecipe
    facts: FactsRecipe = FactsRecipe()
    model: dict[str, Any]
    """Fields of NSADecoderConfig; vocabulary and special tokens come from the tokenizer."""
    init_from: Path | None = None
    """Folder of a checkpoint whose weights training begins with; a dense one's serve an NSA model too."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    optim: OptimRecipe = OptimRecipe()
    batch_tokens: Positive = 131_072
    """Tokens in an optimizer step, over all micro-batches."""
    micro_batch_tokens: Positive = 131_072
    """Tokens in one forward and backward of one process; changes memory and rounding alone."""
    answer_weight: float = 1.0
    """Weight of the mean loss on answer tokens beside the mean loss on all tokens."""
    ranking: RankingRecipe | None = None
    """With NSA; a model with full attention has no blocks to rank."""
    seed: int = 0
    compile: bool = False
    """torch.compile the MLPs and the loss, on a GPU, once for all lengths."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that build batches, for each process that trains."""
    log_every: Positive = 10
    save_every: Positive = 200
    """Steps between resumable checkpoints."""
    test_every: Positive = 200
    """Steps between retrieval tests on held-out text."""
    test_lengths: tuple[Positive, ...] = (512, 1024, 2048)

    @field_validator("model")
    @classmethod
    def _fields_are_known(cls, fields: dict[str, Any]) -> dict[str, Any]:
        allowed = NSADecoderConfig.__annotations__.keys() - _FROM_TOKENIZER
        unknown = sorted(fields.keys() - allowed)
        if unknown:
            raise ValueError(f"{', '.join(unknown)} not among its fields: {', '.join(sorted(allowed))}")
        try:
            NSADecoderConfig(**fields)
        except (StrictDataclassError, TypeError) as error:
            raise ValueError(" ".join(str(error).split())) from error
        return fields

    @model_validator(mode="after")
    def _stages_fit(self) -> Recipe:
        if self.batch_tokens % self.micro_batch_tokens:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be a multiple of "
                f"micro_batch_tokens ({self.micro_batch_tokens})"
            )
        for index, stage in enumerate(self.stages):
            if stage.select_count is not None:
                try:
                    NSADecoderConfig(**{**self.model, "nsa_select_count": stage.select_count})
                except ValueError as error:
                    raise ValueError(f"stages.{index}.select_count: {error}") from error
            for length in stage.lengths:
                if self.micro_batch_tokens % length:
                    raise ValueError(
                        f"micro_batch_tokens ({self.micro_batch_tokens}) must be a multiple of every length, "
                        f"and isn't of {length} in stages.{index}.lengths"
                    )
        return self

    @model_validator(mode="after")
    def _there_is_something_to_rank(self) -> Recipe:
        config = NSADecoderConfig(**self.model)
        if self.ranking is None or config.attention != "nsa":
            return self
        if BRANCHES.index("slc") in config.closed_branches:
            raise ValueError(
                f"ranking: nothing trains the selected branch that it draws to, nsa_branches are "
                f"{config.nsa_branches}: leave it out"
            )
        if config.nsa_select_count == config.geometry.forced_blocks:
            raise ValueError(
                f"ranking: all {config.nsa_select_count} blocks of nsa_select_count are selected whatever "
                "their rank: leave it out, or raise that"
            )
        return self


def load_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.
        changes: Keys to set otherwise, as `text.folder=books` or `stages.1.max_steps=300`; values are YAML.

    Raises:
        RecipeError: The file is missing, isn't YAML, or a key is unknown or of the wrong type.
    """
    raw = read_yaml(path)
    for change in changes:
        set_from_text(raw, change)
    return checked(Recipe, raw, str(path))


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - whatever stands in a YAML file
    """What a YAML file holds, unchecked.

    Raises:
        RecipeError: The file is missing or isn't YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {error}") from error


def checked(kind: type[Checked], raw: Any, where: str) -> Checked:  # noqa: ANN401 - what is to be checked
    """Plain data as `kind`.

    Raises:
        RecipeError: A key is missing, unknown or of the wrong type; each is a line that begins with `where`.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [": ".join(part for part in (where, *_told(e)) if part) for e in error.errors()]
        raise RecipeError("\n".join(lines)) from error


def set_from_text(raw: Any, change: str) -> None:  # noqa: ANN401 - whatever stands in a YAML file
    """Put a command line's `a.b=value` into plain data.

    Raises:
        RecipeError: There is no such place, or the value isn't YAML.
    """
    key, equals, text = change.partition("=")
    try:
        if not equals:
            raise ValueError
        set_key(raw, key, yaml.safe_load(text))
    except (ValueError, yaml.YAMLError) as error:
        raise RecipeError(
            f"--set {change}: expected KEY=VALUE with a key of the recipe, like text.folder=books or "
            "stages.1.max_steps=300"
        ) from error


def set_key(raw: Any, key: str, value: Any) -> None:  # noqa: ANN401 - whatever stands in a YAML file
    """Put a value at `a.b` into plain data; a table that isn't there yet is made.

    Raises:
        ValueError: There is no such place.
    """
    *outer, last = key.split(".")
    place = raw
    try:
        for name in outer:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        place[int(last) if isinstance(place, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"there is no place for {key}") from error


def _told(error: ErrorDetails) -> tuple[str, str]:
    """Key and reason of one of pydantic's errors."""
    return ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
