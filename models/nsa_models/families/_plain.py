"""Random rows, what one plain forward says of them, and when another way of reading them agrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.families._contract import FamilyError
from nsa_models.families._declared import Declared, accepts, setting, text_config
from nsa_models.families._frequencies import Frequencies
from nsa_models.shortage import is_out_of_memory

ROWS = 3
_TOKENS = 14
# A row passes a declared window of so many tokens and goes on behind it; a longer one costs too much here.
AFFORDABLE_WINDOW = 32
# Root mean square of a place's error over that of all logits. Between two ways to read a row lies rounding in
# other shapes; a wrong position, mask or state is off by more. Measured on random models of 2 to 32 layers:
# float32 up to 5e-6, float16 5e-3, bfloat16 3e-2; the faults that this is for from 2e-3 up, and .3 to 1 in
# models that predict something. Steps of Zamba2 and Nemotron-H lie up to 2e-3 beside their plain forward:
# they run uncached in float32 on a CPU, and cached where rounding is larger than that.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# A GPU may multiply float32 in TF32, which has float16's mantissa.
_TOLERANCE_TF32 = 2e-3
# In half precision, rounding alone sends a token to another expert of a mixture now and then, and its logits
# go anywhere. That hits other places in other rows; a fault hits the same places in all. So a place counts as
# right when it is in one of so many samples.
_SAMPLES_HALF = 8
_SEED = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """Three rows of random tokens."""

    tokens: Tensor
    """[3, N]; the first two rows begin alike, the third has the padding's id early on."""
    logits: Tensor
    """[3, N, V] of a plain forward, float32."""


class PlainForwards:
    """A model's forwards without a cache: what every other way to read a row is measured by."""

    def __init__(self, model: PreTrainedModel, declared: Declared) -> None:
        """Fix the rows' size.

        Args:
            model: In eval mode, on its device.
            declared: What its config says.
        """
        self.model = model
        self.frequencies = Frequencies.of(model)
        self.length = self._length(declared)
        """Tokens of each row."""
        self.shared = max(2, self.length // 2 - 1)
        """Tokens that the first two rows share."""
        self.arguments: dict[str, Any] = {"use_cache": False} if accepts(model, "use_cache") else {}
        half = model.dtype not in (torch.float64, torch.float32)
        self._samples: list[Sample] = []
        self._most = _SAMPLES_HALF if half else 1
        self._allowed = _allowed_tokens(model)
        self._padding = _padding(model, len(self._allowed))
        tolerance = _TOLERANCE.get(model.dtype, _TOLERANCE[torch.bfloat16])
        tf32 = model.dtype == torch.float32 and model.device.type != "cpu"
        self.tolerance = _TOLERANCE_TF32 if tf32 else tolerance

    def agree(self, errors: Callable[[Sample], Tensor], *, tolerance: float | None = None) -> bool:
        """Whether each place is within the tolerance in some sample; one sample decides in full precision.

        Args:
            errors: Errors [T] of the same T places of any sample, as `error` gives them.
            tolerance: Instead of the one for cached forwards.
        """
        allowed = self.tolerance if tolerance is None else tolerance
        best: Tensor | None = None
        for number in range(self._most):
            found = errors(self.sample(number)).nan_to_num(nan=torch.inf)
            best = found if best is None else torch.minimum(best, found)
            if not best.numel() or float(best.max()) <= allowed:
                return True
        return False

    def error(self, found: Tensor, expected: Tensor) -> Tensor:
        """Errors [T] of logits [T, V] relative to the size of the expected; NaN where nothing is finite."""
        centred = expected - expected.nanmean(-1, keepdim=True)
        finite = centred[centred.isfinite()]
        size = finite.square().mean().sqrt() if finite.numel() else finite.new_tensor(torch.nan)
        return (found.float() - expected).square().nanmean(-1).sqrt() / size

    def sample(self, number: int) -> Sample:
        """The sample of that number; made once."""
        while len(self._samples) <= number:
            pick = torch.Generator().manual_seed(_SEED + len(self._samples))
            chosen = torch.randint(len(self._allowed), (ROWS, self.length), generator=pick)
            tokens = torch.tensor(self._allowed)[chosen]
            tokens[1, : self.shared] = tokens[0, : self.shared]
            if self._padding is not None:
                # A prompt may have it (as its BOS, or by its text), and RoBERTa counts no position for it.
                tokens[2, 1] = self._padding
            tokens = tokens.to(self.model.device)
            self._samples.append(Sample(tokens, self.forward(tokens)))
        return self._samples[number]

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, N, V] of one forward over tokens [B, N].

        Raises:
            FamilyError: The model can't be run on token ids alone.
        """
        self.frequencies.reset()
        try:
            logits = self.model(input_ids=tokens, **self.arguments).logits
        except Exception as error:  # whatever a model raises that lacks an input
            if is_out_of_memory(error):
                raise
            raise FamilyError(
                f"{name_of(self.model)} can't be run on {tokens.shape[1]} token ids alone "
                f"({type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}); it may need an "
                "image, an encoder or other inputs: only causal language models of text can be evaluated"
            ) from error
        if not isinstance(logits, Tensor) or logits.shape[:2] != tokens.shape:
            raise FamilyError(
                f"{name_of(self.model)} doesn't give logits for each token; only causal language models can "
                "be evaluated"
            )
        return logits.float()

    def _length(self, declared: Declared) -> int:
        """Beyond the declared windows where that is affordable, within what the model has positions for."""
        affordable = [window for window in declared.windows if window <= AFFORDABLE_WINDOW]
        length = max([_TOKENS, *(2 * window + 8 for window in affordable)])
        limits = [declared.longest, self.frequencies.moving, *self.frequencies.borders]
        return max(4, min([length, *(limit for limit in limits if limit)]))


def name_of(model: PreTrainedModel) -> str:
    """What to call a model in a message."""
    return str(getattr(model.config, "_name_or_path", "") or type(model).__name__)


def _allowed_tokens(model: PreTrainedModel) -> list[int]:
    """Ids with an embedding that are no special tokens, which may stand for an image."""
    sizes = [
        getattr(model.get_input_embeddings(), "num_embeddings", None),
        getattr(model.config, "vocab_size", None),
    ]
    vocabulary = min((size for size in sizes if isinstance(size, int)), default=2)
    special = _special_ids(model.config.to_dict())
    return [token for token in range(min(vocabulary, 4096)) if token not in special] or [0]


def _padding(model: PreTrainedModel, allowed: int) -> int | None:
    """The id that a model's text config pads with, where it has an embedding."""
    found = setting(text_config(model), "pad_token_id")
    size = getattr(model.get_input_embeddings(), "num_embeddings", 0)
    return found if isinstance(found, int) and 0 <= found < size and allowed > 1 else None


def _special_ids(config: Any) -> set[int]:  # noqa: ANN401 - a config as plain data
    found: set[int] = set()
    if isinstance(config, dict):
        for key, value in config.items():
            named = str(key).endswith(("token_id", "token_index", "token_ids"))
            if named and isinstance(value, int):
                found.add(value)
            elif named and isinstance(value, (list, tuple)):
                found.update(part for part in value if isinstance(part, int))
            else:
                found |= _special_ids(value)
    return found
