"""Cells of attention that requests take: as declared, each by itself, and as a method counted them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

from transformers import PreTrainedModel

from nsa_eval.store import Cells
from nsa_models.kv import KVCost, kv_costs
from nsa_models.methods import Attached, attached_to

Phase = Literal["prefill", "decode"]


class CellMeter:
    """Tells the cells of texts and of decode steps, and takes a method's counts as they come."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Args: `model` is where it computes; a method may be put on it until `start`."""
        self._model = model
        self._seen: dict[Phase, tuple[int, int]] = {}
        self._look()

    def start(self, longest: int = 0) -> None:
        """Take the model as it is now, and forget what was counted so far.

        Args:
            longest: Tokens of the longest text to come, whose cells are worked out here: before the clock.
        """
        if attached_to(self._model) is not self._attached:
            self._look()
        for phase in ("prefill", "decode"):
            self._taken(phase)
        if self._attached is not None:
            self._attached.reads.take_rows()
        self.prompt(longest)

    def _look(self) -> None:
        """What the model and its method state; nothing of it changes while the method stays on it."""
        self._attached: Attached | None = attached_to(self._model)
        text = self._model.config.get_text_config(decoder=True)
        heads = getattr(text, "num_attention_heads", None)
        self._heads = heads * int(text.num_hidden_layers) if self._attached and isinstance(heads, int) else 1
        # Replies of one length range over the same positions: each is worked out once.
        self._step = functools.lru_cache(maxsize=2**18)(kv_costs(self._model))
        self._by_prompt = self._attached is not None and self._attached.method.rowwise
        self._prefill = kv_costs(self._model, phase="prefill")
        self._prompts = _Sums(self._prefill)
        # Where a prompt's end decides what its queries read, texts have no sums in common.
        self._by_end = (
            self._by_prompt and self._attached is not None and self._attached.method.phase != "decode"
        )
        self._ending = functools.lru_cache(maxsize=32)(self._sums_of)
        self._seen = {}

    @property
    def counts(self) -> bool:
        """Whether a method is there that counts."""
        return self._attached is not None

    def prompt(self, tokens: int, *, after: int = 0) -> Cells:
        """Stated cells of a text that is read, a layer and head, without its first `after` tokens."""
        sums = self._ending(tokens) if self._by_end else self._prompts
        return sums.until(tokens) - sums.until(after)

    def _sums_of(self, tokens: int) -> _Sums:
        """Those of a text that ends with so many tokens."""
        prefill = self._prefill
        return _Sums(lambda position: prefill(position, tokens))

    def step(self, tokens: int, prompt: int) -> KVCost:
        """What a decode step costs at so many tokens, its own among them, behind a prompt."""
        return self._step(tokens, prompt if self._by_prompt else None)

    def steps(self, first: int, last: int, prompt: int) -> Cells:
        """Stated cells of decode steps: queries at tokens first to last, each counting itself, from 1."""
        costs = [self.step(tokens, prompt) for tokens in range(first, last + 1)]
        return Cells(
            read=round(sum(one.read for one in costs)),
            least=round(sum(_least(one) for one in costs)),
            dense=sum(range(first, last + 1)),
            index=round(sum(one.index for one in costs)),
            left=round(sum(one.read if one.left is None else one.left for one in costs))
            if any(one.left for one in costs)
            else None,
        )

    def counted(self, phase: Phase, stated: Sequence[Cells]) -> list[Cells]:
        """What was counted since the last call, shared out; nothing without a method.

        Prompts that were read whole, in the order of `stated`, get what their own rows read. Where requests
        came in pieces, or shared some, and in decode steps, each gets the part that it states of what all of
        them state: its own count where the declaration is exact, or where rows are of one length.

        Args:
            phase: Which counts.
            stated: Cells of each request that were computed since.
        """
        if self._attached is None:
            return []
        read, dense = self._taken(phase)
        rows = self._attached.reads.take_rows() if phase == "prefill" else []
        if [whole for _, whole in rows] == [one.dense * self._heads for one in stated]:
            return [Cells(read=part, least=part, dense=of, heads=self._heads) for part, of in rows]
        reads, whole = (sum(one.read for one in stated) or 1, sum(one.dense for one in stated) or 1)
        shares = [(round(read * one.read / reads), round(dense * one.dense / whole)) for one in stated]
        return [Cells(read=part, least=part, dense=of, heads=self._heads) for part, of in shares]

    def _taken(self, phase: Phase) -> tuple[int, int]:
        if self._attached is None:
            return 0, 0
        reads = self._attached.reads
        counts = reads.prefill if phase == "prefill" else reads.decode
        before = self._seen.get(phase, (0, 0))
        self._seen[phase] = (counts.read, counts.dense)
        return counts.read - before[0], counts.dense - before[1]


class _Sums:
    """Sums over the positions of a text, grown as longer texts come."""

    def __init__(self, cost: Callable[[int], KVCost]) -> None:
        self._cost = cost
        self._read, self._least, self._index = [0.0], [0.0], [0.0]

    def until(self, tokens: int) -> Cells:
        for position in range(len(self._read), tokens + 1):
            one = self._cost(position)
            self._read.append(self._read[-1] + one.read)
            self._least.append(self._least[-1] + _least(one))
            self._index.append(self._index[-1] + one.index)
        return Cells(
            read=round(self._read[tokens]),
            least=round(self._least[tokens]),
            dense=tokens * (tokens + 1) // 2,
            index=round(self._index[tokens]),
        )


def _least(cost: KVCost) -> float:
    return cost.read if cost.least is None else cost.least
