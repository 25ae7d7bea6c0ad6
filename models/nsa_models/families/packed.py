"""Full attention with rows packed one behind another, and every prefix kept once (`nsa_models.packed`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nsa_models.families._contract import Family, Rows, Slots, check_room
from nsa_models.families._declared import Declared, accepts
from nsa_models.feeding import feeding
from nsa_models.lower_right import IMPLEMENTATION, prefer_lower_right
from nsa_models.methods import attached_to
from nsa_models.modeling import NSADecoderForCausalLM
from nsa_models.packed import Block, Chain, PackedForward, PackedSlots, Span

ORDER = 5
"""Its place among the families: smaller numbers are tried first."""

# On a CPU the families below are as fast; there these rows are for tests, which hold them to plain forwards.
DEVICES = ("cuda",)
# Tokens of plain prefill that going on from a cache costs a row: its part in the calls of a few more kernels.
_RESUME_TOKENS = 4


class PackedFamily(Family):
    """Rows as lists of spans of blocks; the model computes heads, and attention to them is done here."""

    name = "packed rows"

    def __init__(self, model: PreTrainedModel) -> None:
        """Declare everything; `holds` in _probe.py checks it."""
        super().__init__(model)
        self.ragged = self.continuable = self.shared = True
        self.packs = self.refills = True
        self.copies = False
        self.resume_tokens = _RESUME_TOKENS
        self._feed: PackedForward | None = None
        self._block: Block | None = None
        # A mask of four axes is taken as it is, so transformers makes none: nobody reads it.
        self._no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=model.device)

    def empty(self, rows: int) -> Rows:
        """Rows without spans."""
        return Rows(cache=[()] * rows, lengths=[0] * rows)

    def inputs(self, tokens: Tensor, counts: list[int], rows: Rows | None) -> dict[str, Any]:
        """All tokens in one row, each at its own position."""
        width = tokens.shape[1]
        places = np.concatenate([np.arange(count) + row * width for row, count in enumerate(counts)])
        lengths = [0] * len(counts) if rows is None else rows.lengths
        positions = np.concatenate([np.arange(n) + at for n, at in zip(counts, lengths, strict=True)])
        index = torch.from_numpy(np.stack([places, positions])).to(tokens.device, non_blocking=True)
        chains: list[Chain] = [()] * len(counts) if rows is None else rows.cache
        self._feed = PackedForward(
            chains, counts, keep=rows is not None and rows.kept, device=self.model.device
        )
        return self._arguments(tokens.reshape(-1)[index[0]][None], index[1][None])

    def forward(self, given: dict[str, Any], *, module: nn.Module | None = None) -> Any:  # noqa: ANN401
        """Run the forward with this family's attention in place of the model's."""
        feed, self._feed = self._feed, None  # kept no longer: it knows all that its rows have read
        assert feed is not None, "inputs comes first"
        with feeding(feed):
            output = super().forward(given, module=module)
        self._block = feed.block
        return output

    def places(self, wanted: Tensor, counts: list[int], rows: Rows | None) -> Tensor:
        """Where those of the rows' tokens stand among all of them."""
        return torch.cat([row[:count] for row, count in zip(wanted, counts, strict=True)])[None]

    def absorb(self, output: Any, tokens: Tensor, counts: list[int], rows: Rows) -> None:  # noqa: ANN401
        """Note which tokens of the forward's block are each row's."""
        block, self._block, begin = self._block, None, 0
        chains: list[Chain] = list(rows.cache)
        for row, count in enumerate(counts):
            if count and block is not None:
                chains[row] = (*chains[row], Span(block, begin, begin + count))
            begin += count
        rows.cache = chains
        rows.lengths = [length + count for length, count in zip(rows.lengths, counts, strict=True)]

    def select(self, rows: Rows, indices: list[int]) -> Rows:
        """The rows' lists of spans: nothing is copied."""
        return Rows(cache=[rows.cache[i] for i in indices], lengths=[rows.lengths[i] for i in indices])

    def join(self, parts: list[Rows]) -> Rows:
        """All lists."""
        return Rows(
            cache=[chain for part in parts for chain in part.cache],
            lengths=[length for part in parts for length in part.lengths],
        )

    def size_of(self, rows: Rows) -> int:
        """Bytes of the blocks, each counted once."""
        return sum(block.nbytes for block in {span.block for chain in rows.cache for span in chain})

    def slots(self, count: int, *, longest: int, room: int, graphs: bool) -> Slots:
        """Tails for new tokens, and tables of where everything before them lies."""
        check_room(count * room * self.cache_bytes, self.model.device)
        return _Slots(self._step, slots=count, room=room, device=self.model.device, graphs=graphs)

    def _step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self.frequencies.reset()
        logits: Tensor = self.model(**self._arguments(tokens, positions)).logits[0]
        return logits

    def _arguments(self, tokens: Tensor, positions: Tensor) -> dict[str, Any]:
        given: dict[str, Any] = {"input_ids": tokens, "position_ids": positions, "use_cache": False}
        if not isinstance(self.model, NSADecoderForCausalLM):
            given["attention_mask"] = self._no_mask
        return given

    def _continued(self, tokens: Tensor, counts: list[int], rows: Rows) -> dict[str, Any]:
        return self.inputs(tokens, counts, rows)


class _Slots(PackedSlots):
    def admit(self, slot: int, rows: Rows, row: int) -> None:  # type: ignore[override]
        super().admit(slot, rows.cache[row], rows.lengths[row])

    def kept(self, rows: Rows | None) -> int:
        chains = [chain for chain in (*self._chains, *(rows.cache if rows else ())) if chain]
        blocks = {span.block for chain in chains for span in chain}
        return sum(int(block.k[0].shape[0]) for block in blocks) + len(self._chains) * self.room


def candidates(model: PreTrainedModel, declared: Declared) -> Iterator[Family]:
    """Models with nothing but full attention, all of which can be let to us."""
    if model.device.type not in DEVICES or not declared.plain or attached_to(model) is not None:
        return
    if not accepts(model, "position_ids"):
        return
    if isinstance(model, NSADecoderForCausalLM):
        attends = model.config.attention == "full"
    else:
        attends = prefer_lower_right(model) or model.config._attn_implementation == IMPLEMENTATION
    family = PackedFamily(model)
    if attends and not family.frequencies.borders and family.frequencies.moving is None:
        yield family
