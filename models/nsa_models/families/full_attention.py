"""transformers' decoders with full attention in every layer: rows of any lengths go on together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.families._cached import CacheFamily, cache_argument, takes_positions
from nsa_models.families._contract import Family, Rows, stacked
from nsa_models.families._declared import Declared

ORDER = 10
"""Its place among the families: smaller numbers are tried first."""


class FullAttentionFamily(CacheFamily):
    """Holes in the cache, hidden by a mask.

    A right-padded prefill leaves holes in the cache of the shorter rows. They stay there: a 2-D mask hides
    them and positions are passed, so every row goes on at its own length.
    """

    name = "full attention"

    def __init__(self, model: PreTrainedModel, *, positions: bool = True) -> None:
        """Declare everything; `holds` in _probe.py checks it."""
        super().__init__(model, positions=positions)
        self.ragged = self.continuable = self.shared = True

    def _continued(self, tokens: Tensor, counts: list[int], rows: Rows) -> dict[str, Any]:
        given = super()._continued(tokens, counts, rows)
        if rows.mask is not None:
            # Padding of this very piece follows its row's tokens, so causality alone hides it.
            new = rows.mask.new_ones(len(counts), tokens.shape[1])
            given["attention_mask"] = torch.cat([rows.mask, new], dim=1)
        return given

    def absorb(self, output: Any, tokens: Tensor, counts: list[int], rows: Rows) -> None:  # noqa: ANN401 - a ModelOutput
        """Note which of the new columns hold a token."""
        width = tokens.shape[1]
        if rows.mask is not None or any(count != width for count in counts):
            device = tokens.device
            new = torch.arange(width, device=device) < torch.tensor(counts, device=device)[:, None]
            old = new.new_ones(len(counts), rows.lengths[0]) if rows.mask is None else rows.mask
            rows.mask = torch.cat([old, new], dim=1)
        super().absorb(output, tokens, counts, rows)

    def join(self, parts: list[Rows]) -> Rows:
        """Caches side by side, the narrower ones with holes at the end."""
        whole = parts[0].cache
        for index, layer in enumerate(whole.layers):
            # Layer by layer, so that no more than one layer is ever there twice.
            twins = [part.cache.layers[index] for part in parts]
            if not twins[0].is_initialized:  # a layer that uses another's keys
                continue
            keys, values = [twin.keys for twin in twins], [twin.values for twin in twins]
            for twin in twins:
                twin.keys = twin.values = None
            layer.keys, layer.values = stacked(keys, -2), stacked(values, -2)
        widths = [max(part.lengths) if part.mask is None else part.mask.shape[1] for part in parts]
        lengths = [length for part in parts for length in part.lengths]
        mask = None
        if any(part.mask is not None for part in parts) or len(set(widths)) > 1:
            masks = [
                torch.ones(len(part.lengths), width, dtype=torch.bool, device=self.model.device)
                if part.mask is None
                else part.mask
                for part, width in zip(parts, widths, strict=True)
            ]
            mask = stacked(masks, 1)
        return Rows(cache=whole, lengths=lengths, mask=mask)


def candidates(model: PreTrainedModel, declared: Declared) -> Iterator[Family]:
    """What to try, where nothing is declared but full attention."""
    if declared.plain and cache_argument(model):
        for positions in takes_positions(model):
            yield FullAttentionFamily(model, positions=positions)
