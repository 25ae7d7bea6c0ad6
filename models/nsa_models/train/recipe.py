"""The recipe: everything that a training run depends on, read strictly from YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub.errors import StrictDataclassError
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
    field_validator,
    model_validator,
)

from nsa_models.configuration import BRANCHES, NSADecoderConfig
from nsa_settings import Place, did_you_mean, mistakes

# Fields of NSADecoderConfig that the tokenizer decides.
_FROM_TOKENIZER = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}


class RecipePart(BaseModel):
    """Strict: an unknown key is an error, and so is text where a number belongs."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _spacing(value: object) -> object:
    """Read tokens, or {length: tokens} whose keys a file may hold as text."""
    if _is_positive(value):
        return value
    if isinstance(value, dict) and value and all(map(_is_positive, value.values())):
        try:
            lengths = {int(length): tokens for length, tokens in value.items()}
        except ValueError:
            lengths = {0: 0}
        if all(length > 0 for length in lengths):
            return lengths
    raise ValueError(f"expected tokens such as 160, or {{2048: 160, 4096: 200}} by length, got {value!r}")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Folder = Annotated[Path, Field(strict=False)]
"""Text in a file."""
Lengths = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
"""Tokens, a list in a file."""
Spacing = Annotated[int | dict[int, int], BeforeValidator(_spacing)]


class TextRecipe(RecipePart):
    """Where the training text is and how it becomes tokens."""

    folder: Folder
    """Folder with .txt or .jsonl files (a `text` field), plain, .gz or .xz; not read if there is a cache."""
    files: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Names of the folder's files to read; none named = all of them."""
    cache: Folder
    """Folder for tokenizer, tokens and word list; made once, shared by both twins."""
    vocab_size: Annotated[int, Field(ge=259, le=65_536)] = 4096
    """Entries of the byte-level BPE, 256 bytes and 3 special tokens included; ids are kept in 16 bits."""
    tokenizer_sample: Positive = 20_000_000
    """Characters that the BPE is learned from."""
    max_tokens: Positive = 22_000_000
    """Tokens kept, taken evenly from all documents."""
    held_out: Share = 0.02
    """Share of documents kept for validation and never trained on."""


class FactsRecipe(RecipePart):
    """How facts and questions are sown into the text."""

    tokens_per_fact: Spacing = 160
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


class Stage(RecipePart):
    """One step of the curriculum."""

    lengths: Lengths
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


class OptimRecipe(RecipePart):
    """AdamW with warm-up, a constant plateau and a linear decay over the last stage."""

    lr: float = 2e-3
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.95)
    weight_decay: float = 0.01
    warmup_steps: Positive = 100
    final_lr_ratio: Share = 0.05
    """Learning rate at the end of the last stage, as a share of lr."""
    clip: float = 1.0
    """Largest gradient norm."""


class RankingRecipe(RecipePart):
    """A loss that draws NSA's ranking of blocks towards the selected branch's own attention."""

    weight: Annotated[float, Field(gt=0.0)] = 0.5
    """Beside the mean loss on all tokens."""
    queries: Annotated[int, Field(ge=2)] = 128
    """Queries of each sequence that are asked, half of them where answers are predicted."""


_FIELDS: dict[str, Any] = {
    name: (kind, None)
    for name, kind in NSADecoderConfig.__annotations__.items()
    if name not in _FROM_TOKENIZER
}
_ModelFields = create_model("_ModelFields", __base__=RecipePart, **_FIELDS)
"""The fields of NSADecoderConfig that a recipe may set, and their types."""


class Recipe(RecipePart):
    """A training run."""

    name: str
    """Name of the checkpoint."""
    output: Folder
    """Folder for checkpoints, log and the exported model."""
    text: TextRecipe
    facts: FactsRecipe = FactsRecipe()
    model: dict[str, Any]
    """Fields of NSADecoderConfig; vocabulary and special tokens come from the tokenizer."""
    init_from: Folder | None = None
    """Folder of a checkpoint whose weights training begins with; a dense one's serve an NSA model too."""
    stages: Annotated[tuple[Stage, ...], Field(strict=False, min_length=1)]
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
    test_lengths: Annotated[tuple[Positive, ...], Field(strict=False)] = (512, 1024, 2048)

    @field_validator("model")
    @classmethod
    def _fields_are_known(cls, fields: dict[str, Any]) -> dict[str, Any]:
        known = _ModelFields.model_fields
        unknown: dict[Place, str] = {
            (name,): "the tokenizer decides it: leave it out"
            if name in _FROM_TOKENIZER
            else f"unknown key{did_you_mean(name, known)}"
            for name in fields
            if name not in known
        }
        if unknown:
            raise mistakes(unknown)
        _ModelFields.model_validate(fields)
        try:
            NSADecoderConfig(**fields)
        except (StrictDataclassError, TypeError, ValueError) as error:
            told = " ".join(str(error).split())
            first = told.partition(" ")[0]  # most begin with the field, the block grid's with our name for it
            named = next((name for name in (first, f"nsa_{first}") if name in fields), None)
            if named is None:
                raise mistakes({(): told}) from error
            raise mistakes({(named,): re.sub(f"^{first} (?=must)", "", told)}) from error
        return fields

    @model_validator(mode="after")
    def _stages_fit(self) -> Recipe:
        micro = self.micro_batch_tokens
        if self.batch_tokens % micro:
            told = f"{self.batch_tokens} must be a multiple of micro_batch_tokens ({micro})"
            raise mistakes({("batch_tokens",): told})
        wrong: dict[Place, str] = {}
        for index, stage in enumerate(self.stages):
            if stage.select_count is not None:
                try:
                    NSADecoderConfig(**{**self.model, "nsa_select_count": stage.select_count})
                except ValueError as error:
                    wrong["stages", index, "select_count"] = str(error)
            for at, length in enumerate(stage.lengths):
                if micro % length:
                    wrong["stages", index, "lengths", at] = (
                        f"micro_batch_tokens ({micro}) must be a multiple of every length, isn't of {length}"
                    )
        if wrong:
            raise mistakes(wrong)
        return self

    @model_validator(mode="after")
    def _there_is_something_to_rank(self) -> Recipe:
        config = NSADecoderConfig(**self.model)
        if self.ranking is None or config.attention != "nsa":
            return self
        if BRANCHES.index("slc") in config.closed_branches:
            told = (
                "nothing trains the selected branch that it draws to, nsa_branches are "
                f"{config.nsa_branches}: leave it out"
            )
            raise mistakes({("ranking",): told})
        if config.nsa_select_count == config.geometry.forced_blocks:
            told = (
                f"all {config.nsa_select_count} blocks of nsa_select_count are selected whatever their rank: "
                "leave it out, or raise that"
            )
            raise mistakes({("ranking",): told})
        return self
