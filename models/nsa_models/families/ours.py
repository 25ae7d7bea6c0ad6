"""The project's decoder: its cache keeps each row's length, and its decode step can be a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.cache import NSACache
from nsa_models.families._cached import CacheFamily
from nsa_models.families._contract import Family, Rows, Slots, check_room, stacked
from nsa_models.families._declared import Declared
from nsa_models.modeling import NSADecoderForCausalLM
from nsa_models.static import CacheSlots, why_not_captured

# Where steps of fixed shapes are used. A CPU has no launches to save, and reads the room behind the rows.
STEADY_DEVICES = ("cuda",)
# Measured: on a CPU, a few tokens that go on from a cache choose their blocks row by row, and a four-choice
# question gains from a shared context only when that has some 200 tokens.
_RESUME_TOKENS_CPU = 150


class OursFamily(CacheFamily):
    """Rows of any lengths; a mask marks a piece's tokens, and the cache has no holes."""

    name = "ours"

    def __init__(self, model: NSADecoderForCausalLM) -> None:
        """Declare everything: the decoder's own tests hold it to that."""
        super().__init__(model, positions=False)  # its cache knows them
        self.decoder = model
        self.ragged = self.continuable = self.shared = True
        self.refills = True
        self.plain = {"use_cache": False}
        config = model.config
        sparse = config.attention == "nsa"
        branches = 3 if sparse else 1  # NSA keeps keys and values once a branch
        heads, width = int(config.num_key_value_heads), int(config.head_dim)
        self.cache_bytes = (
            2 * branches * int(config.num_hidden_layers) * heads * width * int(model.dtype.itemsize)
        )
        if sparse and model.device.type == "cpu":
            self.resume_tokens = _RESUME_TOKENS_CPU

    def empty(self, rows: int) -> Rows:
        """The model makes its own cache on the first forward."""
        return Rows(cache=None, lengths=[0] * rows)

    def _continued(self, tokens: Tensor, counts: list[int], rows: Rows) -> dict[str, Any]:
        if rows.cache is None and rows.room:
            rows.cache = NSACache(int(self.decoder.config.num_hidden_layers), rows.room)
        given = super()._continued(tokens, counts, rows)
        width = tokens.shape[1]
        # Rows that end here need no mask: no token sees the padding behind it.
        if any(count != width for count in counts):
            new = torch.arange(width)[None] < torch.tensor(counts)[:, None]
            given["attention_mask"] = new.to(tokens.device)
        return given

    def join(self, parts: list[Rows]) -> Rows:
        """Buffers side by side; each row keeps its length."""
        whole = parts[0].cache
        for index, layer in enumerate(whole.layers):
            twins = [part.cache.layers[index] for part in parts]
            buffers = [twin.buffers for twin in twins]
            lengths = [twin.lengths for twin in twins]
            rows = [len(part.lengths) for part in parts]
            for twin in twins:
                twin.buffers = {}
            # Short rows may have no complete block yet, and so no buffer of compressed keys.
            like = {name: buffer for some in buffers for name, buffer in some.items()}
            layer.buffers = {
                name: stacked(
                    [
                        some[name] if name in some else like[name].new_zeros(count, 0, *like[name].shape[2:])
                        for some, count in zip(buffers, rows, strict=True)
                    ],
                    1,
                )
                for name in like
            }
            layer.lengths = [length for some in lengths for length in some]
        return Rows(cache=whole, lengths=[length for part in parts for length in part.lengths])

    def slots(self, count: int, *, longest: int, room: int, graphs: bool) -> Slots | None:
        """Rows in a static cache, where steps from a CUDA graph pay: NSA's on a GPU."""
        if self.decoder.config.attention != "nsa" or self.decoder.device.type not in STEADY_DEVICES:
            return None
        if self.decoder.device.type == "cuda" and (not graphs or why_not_captured(self.decoder) is not None):
            return None
        check_room(count * (longest + room) * self.cache_bytes, self.decoder.device)
        return _Slots(self.decoder, slots=count, tokens=longest + room, graphs=graphs)


class _Slots(CacheSlots):
    def admit(self, slot: int, rows: Rows, row: int) -> None:
        super().admit(slot, rows.cache, row)

    def kept(self, rows: Rows | None) -> int | None:
        return None


def candidates(model: PreTrainedModel, declared: Declared) -> Iterator[Family]:
    """The decoder itself."""
    if isinstance(model, NSADecoderForCausalLM):
        yield OursFamily(model)
