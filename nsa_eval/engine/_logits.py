"""Logits where somebody asked for them: the ways in which models give those alone, and which of them one has.

Of a long prompt's tokens few are scored, and the logits of all would be larger than the model's activations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nsa_models.families import Family, accepts
from nsa_models.shortage import is_out_of_memory

_KEEP = "logits_to_keep"
"""transformers' argument: how many of the last columns, which columns, or (some models) which places."""


class LogitRoute(ABC):
    """One way. Below, `wanted` [B, N] is bool, on the CPU, and says which places have logits in the end."""

    name: ClassVar[str]
    module: nn.Module | None = None
    """What is run in place of the whole model."""

    def __init__(self, device: torch.device) -> None:
        """Args: `device` is the model's."""
        self.device = device

    @abstractmethod
    def made(self, wanted: Tensor) -> Tensor:
        """How many rows of logits a forward makes at once for each of its columns, [N]."""

    @abstractmethod
    def ask(self, given: dict[str, Any], wanted: Tensor) -> None:
        """Add to a forward's arguments what makes it give them."""

    def ask_last(self, given: dict[str, Any]) -> None:
        """The same for the last column of every row."""
        given[_KEEP] = 1

    @abstractmethod
    def logits(self, output: Any, wanted: Tensor, most: int) -> Iterator[Tensor]:  # noqa: ANN401 (a ModelOutput)
        """Logits [T, V] of the wanted places, one at least, row by row; in parts where they are made here.

        Args:
            output: What the forward gave. Nobody else should hold it: it is let go as soon as it can be.
            wanted: As for `ask`.
            most: Places of a part.
        """


class Places(LogitRoute):
    """The model takes places."""

    name = "mask"

    def made(self, wanted: Tensor) -> Tensor:
        """Of those places alone."""
        return wanted.sum(0)

    def ask(self, given: dict[str, Any], wanted: Tensor) -> None:
        """Name them; a lone 0 would mean all."""
        given[_KEEP] = wanted.to(self.device) if wanted.any() else 1

    def logits(self, output: Any, wanted: Tensor, most: int) -> Iterator[Tensor]:  # noqa: ANN401
        """As the model gives them."""
        yield output.logits


class Columns(LogitRoute):
    """The model takes columns, which it gives of all rows."""

    name = "columns"

    def made(self, wanted: Tensor) -> Tensor:
        """Of every row, where any asks."""
        return wanted.any(0) * len(wanted)

    def ask(self, given: dict[str, Any], wanted: Tensor) -> None:
        """Name them; none would mean all."""
        columns = wanted.any(0).nonzero()[:, 0]
        given[_KEEP] = columns.to(self.device) if len(columns) else 1

    def logits(self, output: Any, wanted: Tensor, most: int) -> Iterator[Tensor]:  # noqa: ANN401
        """Without the other rows'."""
        yield output.logits[wanted[:, wanted.any(0)].to(self.device)]


class Everything(LogitRoute):
    """The model gives the logits of all places."""

    name = "all"

    def made(self, wanted: Tensor) -> Tensor:
        """Of every place."""
        return torch.full((wanted.shape[1],), len(wanted))

    def ask(self, given: dict[str, Any], wanted: Tensor) -> None:
        """Nothing can be asked."""

    def ask_last(self, given: dict[str, Any]) -> None:
        """Nothing can be asked."""

    def logits(self, output: Any, wanted: Tensor, most: int) -> Iterator[Tensor]:  # noqa: ANN401
        """Without those of the other places."""
        yield output.logits[wanted.to(self.device)]


class HeadApart(LogitRoute):
    """The decoder runs without its head, which then makes logits of the wanted places, a part at a time.

    A long piece of which every token is scored needs no logits of all its tokens at once then.
    """

    name = "head"

    def __init__(self, model: PreTrainedModel, decoder: nn.Module) -> None:
        """Args: `decoder` is the model without its head."""
        super().__init__(model.device)
        self.module, self._model = decoder, model
        self._can_be_told = accepts(model, _KEEP)

    def made(self, wanted: Tensor) -> Tensor:
        """None in the forward itself."""
        return torch.zeros(wanted.shape[1], dtype=torch.long)

    def ask(self, given: dict[str, Any], wanted: Tensor) -> None:
        """A decoder makes no logits."""

    def ask_last(self, given: dict[str, Any]) -> None:
        """A step runs the whole model, if it can be told."""
        if self._can_be_told:
            given[_KEEP] = 1

    def logits(self, output: Any, wanted: Tensor, most: int) -> Iterator[Tensor]:  # noqa: ANN401
        """By the head, of the places' states."""
        places = wanted.flatten().nonzero()[:, 0].to(self.device)
        states = output.last_hidden_state.flatten(0, 1)[places]
        del output
        head = self._model.get_output_embeddings()
        for part in states.split(most):
            yield head(part)


@torch.inference_mode()
def find_route(family: Family) -> tuple[LogitRoute, int]:
    """Find out how logits can be asked for by place, the thriftiest way first.

    Args:
        family: Feeds the model.

    Returns:
        The way, and how many columns the logits have.
    """
    model = family.model
    # Not the padding's id alone: its state may be all zeros, which any head maps to the same.
    tokens = torch.tensor([[0, 1], [1, 0]], device=model.device)
    decoder, size = _headless(family, tokens)
    if decoder is not None:
        return HeadApart(model, decoder), size
    if not accepts(model, _KEEP):
        return Everything(model.device), int(_probed(family, tokens).shape[-1])
    places = torch.tensor([[False, True], [True, True]])
    given = family.inputs(tokens, [2, 2], None)
    given[_KEEP] = family.places(places, [2, 2], None).to(model.device)
    try:
        logits = family.forward(given).logits
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        # Only whole columns, as older models and remote code have it.
        return Columns(model.device), int(_probed(family, tokens).shape[-1])
    by_place = logits.dim() == 2 and logits.shape[0] == 3
    return (Places if by_place else Columns)(model.device), int(logits.shape[-1])


def _probed(family: Family, tokens: Tensor) -> Tensor:
    """Logits of all of two rows of two tokens."""
    logits: Tensor = family.forward(family.inputs(tokens, [2, 2], None)).logits
    return logits


def _headless(family: Family, tokens: Tensor) -> tuple[nn.Module | None, int]:
    """The decoder, where the head alone makes the model's logits to the last bit, and the vocabulary's size.

    Models that do something to their logits afterwards (a soft cap, a scale) fail the test.
    """
    model = family.model
    decoder = getattr(model, model.base_model_prefix or "", None)
    head = model.get_output_embeddings()
    if not isinstance(decoder, nn.Module) or decoder is model or not isinstance(head, nn.Linear):
        return None, 0
    try:
        whole = _probed(family, tokens)
        states = family.forward(family.inputs(tokens, [2, 2], None), module=decoder).last_hidden_state
        if not torch.equal(head(states), whole):
            return None, 0
    except Exception as error:  # a decoder that wants other arguments, or gives no hidden states
        if is_out_of_memory(error):
            raise
        return None, 0
    return decoder, int(whole.shape[-1])
