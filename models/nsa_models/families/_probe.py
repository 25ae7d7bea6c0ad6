"""What a model's cached forward does, measured on a few short rows of random tokens.

Every family claims a way of feeding rows. `Probe.holds` feeds a few rows in just that way, through the
family's own methods, and compares all logits with one plain forward without a cache. So what is checked is
what will be run: how the cache is handed on, positions, masks, copies, joins.

A probe is short, and can't see what only shows at length: a window longer than its rows, a chunk's border,
frequencies that change. Those are declared in configs, and what is declared can only make the choice safer
(see _declared.py and _frequencies.py): rows of unequal length go together in full attention alone, however
well that went in the probe; rows are longer than a declared window, where that is small enough to afford, and
where it isn't, the probe is repeated with a window of a few tokens in its place (`holds_narrowed`); and rows
stay below the first border of the frequencies, which the engine keeps apart by itself.

A family whose probe fails, raises or can't be compared is passed over for the next, down to plain forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.families._contract import Family, FamilyError, Rows, right_padded
from nsa_models.families._declared import Declared, narrowed
from nsa_models.families._plain import AFFORDABLE_WINDOW, ROWS, PlainForwards, Sample, name_of
from nsa_models.shortage import is_out_of_memory

# Tokens of the windows in `holds_narrowed`: probed rows pass them twice.
_NARROW = 8
# Fewer tokens than this leave nothing to be read in pieces.
_FEWEST = 8
# What a change of the last token may do to logits before it: these forwards have one shape, so nothing but
# the order of sums inside a mixture of experts may differ.
_CAUSAL = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 4e-2}

_Piece = tuple[int, int, int]
"""(row of the sample, first token, end): what one row of a batch reads in one forward."""
_Feed = Callable[[Rows, Sequence[_Piece]], None]
"""Reads the pieces and notes the errors of their logits."""


class Probe:
    """What holds of one model."""

    def __init__(self, model: PreTrainedModel, declared: Declared) -> None:
        """Run the plain forwards.

        Raises:
            FamilyError: The model can't be run on token ids alone, or isn't causal.
        """
        self.plain = PlainForwards(model, declared)
        self.model = model
        changed = _CAUSAL.get(model.dtype, _CAUSAL[torch.bfloat16])
        # In a batch first, which is asked for anyway; alone only if something changed it there.
        if not self.plain.agree(
            lambda sample: self._before_the_last(sample, ROWS), tolerance=changed
        ) and not self.plain.agree(lambda sample: self._before_the_last(sample, 1), tolerance=changed):
            if not self.plain.agree(self._again, tolerance=changed):
                raise FamilyError(
                    f"{name_of(model)} is random: two forwards over the same {self.plain.length} tokens "
                    "differ, so it has no likelihoods. If its config.json has a seed for it (Reformer's "
                    "hash_seed), set that"
                )
            raise FamilyError(
                f"{name_of(model)} is not a causal language model as it is configured: another token at the "
                f"end of a row of {self.plain.length} changes logits before it. Its likelihoods would see "
                "the text that they are to predict. If it was trained as a decoder, set is_decoder: true in "
                "its config.json; otherwise evaluate another checkpoint"
            )
        self.padded = self.plain.agree(self._before_padding)
        """Padding behind a row doesn't change it."""

    def holds(self, family: Family) -> bool:
        """Whether rows that are fed as this family feeds them get the logits of a plain forward.

        Notes the bytes of its cache a token in `family` on the way.
        """
        if self.plain.length < _FEWEST:
            return False
        family.plain = self.plain.arguments
        ways = [self._equal_rows]
        ways += [self._pieces] if family.continuable else []
        ways += [self._copies] if family.shared else []
        ways += [self._ragged] if family.ragged else []
        try:
            if not all(self._way_agrees(family, way) for way in ways):
                return False
            family.cache_bytes = self._cache_bytes(family)
            return True
        except Exception as error:  # what a model raises when it is fed in a way that it doesn't know
            if is_out_of_memory(error):
                raise
            return False

    def _cache_bytes(self, family: Family) -> int:
        """Bytes that one more token adds: measured early, as sliding windows of a few tokens fill up soon."""
        sample, rows = self.plain.sample(0), family.empty(ROWS)
        self._read(family, sample, rows, [(row, 0, 2) for row in range(ROWS)])
        before = family.size_of(rows)
        self._read(family, sample, rows, [(row, 2, 3) for row in range(ROWS)])
        return max(1, (family.size_of(rows) - before) // ROWS)

    # --- what holds of plain forwards
    # ------------------------------------------------------------------------------------------------------

    def _before_the_last(self, sample: Sample, rows: int) -> Tensor:
        """Errors of the first row before its last token, which is changed."""
        tokens = sample.tokens[:rows].clone()
        last = int(tokens[0, -1])
        tokens[0, -1] = next((token for token in tokens[0].tolist() if token != last), 1 - last)
        expected = sample.logits[:1] if rows == ROWS else self.plain.forward(sample.tokens[:1])
        errors = self.plain.error(self.plain.forward(tokens)[0, :-1], expected[0, :-1])
        return errors.nan_to_num(nan=0.0)  # broken weights are no reason to call a model something else

    def _again(self, sample: Sample) -> Tensor:
        """Errors of the first row, read once more."""
        return self.plain.error(self.plain.forward(sample.tokens)[0], sample.logits[0]).nan_to_num(nan=0.0)

    def _before_padding(self, sample: Sample) -> Tensor:
        """Errors of two rows that end early, each by another number of tokens."""
        tokens = sample.tokens.clone()
        first, second = self.plain.length - 3, self.plain.length - 1
        tokens[0, first:], tokens[2, second:] = 0, 0
        found = self.plain.forward(tokens)
        # Each is compared with itself alone and unpadded: ProphetNet's logits depend on a row's width, too.
        return torch.cat(
            [
                self.plain.error(found[row, :end], self.plain.forward(tokens[row : row + 1, :end])[0])
                for row, end in ((0, first), (2, second))
            ]
        )

    # --- the ways of feeding
    # ------------------------------------------------------------------------------------------------------

    def _way_agrees(self, family: Family, way: Callable[[Family, _Feed], None]) -> bool:
        def errors(sample: Sample) -> Tensor:
            seen: list[Tensor] = []

            def feed(rows: Rows, pieces: Sequence[_Piece]) -> None:
                seen.append(self._read(family, sample, rows, pieces))

            way(family, feed)
            return torch.cat(seen)

        return self.plain.agree(errors)

    def _equal_rows(self, family: Family, feed: _Feed) -> None:
        """A prompt in one forward, single tokens, a copy of some rows, and the originals after it."""
        end = self.plain.length
        start = end - 4
        rows = family.empty(ROWS)
        feed(rows, [(row, 0, start) for row in range(ROWS)])
        feed(rows, [(row, start, start + 1) for row in range(ROWS)])
        some = family.select(rows, [2, 0])
        for at in range(start + 1, end):
            # By turns, so that a copy that shares its tensors with the original is found out.
            feed(some, [(row, at, at + 1) for row in (2, 0)])
            feed(rows, [(row, at, at + 1) for row in range(ROWS)])

    def _pieces(self, family: Family, feed: _Feed) -> None:
        """A prompt in pieces of several tokens, the last of them shorter for some rows."""
        end = self.plain.length
        cuts = (self.plain.shared - 1, self.plain.shared + 2, end - 2)
        rows = family.empty(ROWS)
        start = 0
        for cut in cuts:
            feed(rows, [(row, start, cut) for row in range(ROWS)])
            start = cut
        feed(family.select(rows, [1, 0]), [(1, start, end), (0, start, start + 1)])
        for at in range(start, end):
            feed(rows, [(row, at, at + 1) for row in range(ROWS)])

    def _copies(self, family: Family, feed: _Feed) -> None:
        """A prefix that is read once, copied, and continued in two ways."""
        shared, end = self.plain.shared, self.plain.length
        rows = family.empty(1)
        feed(rows, [(0, 0, shared)])
        feed(family.select(rows, [0, 0, 0]), [(row, shared, end - 1) for row in (0, 1, 0)])
        feed(rows, [(1, shared, end - 2)])

    def _ragged(self, family: Family, feed: _Feed) -> None:
        """Right-padded rows: a row that ends early, all going on, some dropped, others joined."""
        short, end = self.plain.shared, self.plain.length
        rows = family.empty(ROWS)
        feed(rows, [(0, 0, short), (1, 0, short - 1), (2, 0, short)])
        feed(rows, [(0, short, short), (1, short - 1, short - 1), (2, short, end - 3)])  # two have ended
        feed(rows, [(0, short, short + 1), (1, short - 1, short), (2, end - 3, end - 2)])
        other = family.empty(1)
        feed(other, [(0, 0, end - 2)])
        joined = family.join([family.select(rows, [2, 1]), other])
        feed(joined, [(2, end - 2, end - 1), (1, short, short + 2), (0, end - 2, end - 1)])
        feed(joined, [(2, end - 1, end), (1, short + 2, short + 3), (0, end - 1, end)])

    def _read(self, family: Family, sample: Sample, rows: Rows, pieces: Sequence[_Piece]) -> Tensor:
        """Errors of all tokens of the pieces, in one forward."""
        counts = [end - start for _, start, end in pieces]
        tokens = right_padded([sample.tokens[row, start:end] for row, start, end in pieces])
        wanted = torch.arange(tokens.shape[1])[None] < torch.tensor(counts)[:, None]
        output = family.forward(family.inputs(tokens, counts, rows))
        places = family.places(wanted, counts, rows)
        family.absorb(output, tokens, counts, rows)
        expected = torch.cat([sample.logits[row, start:end] for row, start, end in pieces])
        return self.plain.error(output.logits[places.to(output.logits.device)], expected)


def holds_narrowed(model: PreTrainedModel, declared: Declared, family: Family) -> bool:
    """Whether a family that holds for a model still does where rows are longer than its windows.

    transformers makes a sliding cache for every config that names a window, but not every model masks by it:
    Moshi's plain forward reads all tokens, its cached one the last 3,000. How wide a window is changes
    nothing about how rows are fed, so a short row behind a narrow one tells.

    Returns:
        True as well where there is nothing to narrow, and where the model doesn't run with such a window.
    """
    if not any(window > AFFORDABLE_WINDOW for window in declared.windows):
        return True
    with narrowed(model, AFFORDABLE_WINDOW, _NARROW) as changed:
        if not changed:
            return True
        try:
            probe = Probe(model, Declared.of(model))
        except FamilyError:
            return True
        return probe.holds(family)
