"""What a model's cached forward does, measured on a few short rows of random tokens.

Every family claims a way of feeding rows. `Probe.holds` feeds a few rows in just that way, through the
family's own methods, and compares all logits with one plain forward without a cache. So what is checked is
what will be run: how the cache is handed on, positions, masks, copies, joins.

A probe is short, and can't see what only shows at length: a window longer than its rows, a chunk's border,
frequencies that change. Those are declared in configs, and what is declared can only make the choice safer
(see _declared.py and _frequencies.py): rows of unequal length go together in full attention alone, however
well that went in the probe; rows are longer than a declared window where that is small enough to afford; and
rows stay below the first border of the frequencies, which the engine keeps apart by itself.

A family whose probe fails, raises or can't be compared is passed over for the next, down to plain forwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.families._contract import Family, FamilyError, Rows, right_padded
from nsa_models.families._declared import Declared, accepts
from nsa_models.families._frequencies import Frequencies

_TOKENS = 14
# A row passes a declared window of so many tokens and goes on behind it; a longer one costs too much here.
_AFFORDABLE_WINDOW = 32
# Fewer tokens than this leave nothing to be read in pieces.
_FEWEST = 8
# Root mean square of a place's error over that of all logits. Between a cached and a plain forward lies
# rounding in other shapes; a wrong position, mask or state is off by more. Measured on tiny random models:
# float32 below 1e-5, bfloat16 about 1e-2; the faults that this is for, from 3e-3 up in float32.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Deep models round more: what two shapes of the same plain forward differ by, so many times over, is allowed
# too, up to a bound.
_NOISE = 4.0
_MOST_NOISE = 0.2
# What a change of the last token may do to logits before it: these forwards have one shape, so nothing but
# the order of sums inside a mixture of experts may differ.
_CAUSAL = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 4e-2}
_SEED = 20
_ROWS = 3


class Probe:
    """Three rows of one model, what a plain forward says of them, and what else holds of it."""

    def __init__(self, model: PreTrainedModel, declared: Declared) -> None:
        """Run the plain forwards.

        Raises:
            FamilyError: The model can't be run on token ids alone, or isn't causal.
        """
        self.model = model
        self.length = _length(model, declared)
        self.split = max(2, self.length // 2 - 1)
        """Tokens that the first two rows share."""
        self.tokens = _tokens(model, self.length, self.split)
        self.plain: dict[str, Any] = {"use_cache": False} if accepts(model, "use_cache") else {}
        self.expected = self._plain(self.tokens)
        self.scale = _size(self.expected - self.expected.nanmean(-1, keepdim=True))
        changed = self.tokens.clone()
        changed[0, -1] = self.tokens[0, 0] if self.tokens[0, -1] != self.tokens[0, 0] else self.tokens[0, 1]
        short = self.length - 3
        changed[2, short:] = 0
        found = self._plain(changed)
        alone = self._plain(self.tokens[1:2])
        noise = self._error(alone, self.expected[1:2])
        base = _TOLERANCE.get(model.dtype, _TOLERANCE[torch.bfloat16])
        self.tolerance = max(base, min(_NOISE * noise, _MOST_NOISE)) if math.isfinite(noise) else base
        if self._error(found[0:1, :-1], self.expected[0:1, :-1]) > self._causal_tolerance:
            self._check_causal(changed)
        self.padded = self._agrees(found[2:3, :short], self.expected[2:3, :short])
        """Padding behind a row doesn't change it."""

    @property
    def _causal_tolerance(self) -> float:
        return _CAUSAL.get(self.model.dtype, _CAUSAL[torch.bfloat16])

    def holds(self, family: Family) -> bool:
        """Whether rows that are fed as this family feeds them get the logits of a plain forward.

        Notes the bytes of its cache a token in `family` on the way.
        """
        if self.length < _FEWEST:
            return False
        family.plain = self.plain
        try:
            held = self._equal_rows(family)
            if held and family.continuable:
                held = self._pieces(family)
            if held and family.shared:
                held = self._copies(family)
            if held and family.ragged:
                held = self._ragged(family)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # what a model raises when it is fed in a way that it doesn't know
            return False
        return held

    # --- the ways of feeding, each against the plain forward
    # ---------------------------------------------------------------

    def _equal_rows(self, family: Family) -> bool:
        """A prompt in one forward, single tokens, a copy of some rows, and the originals after it."""
        end = self.length
        start = end - 4
        rows = family.empty(_ROWS)
        if not self._feed(family, rows, [(row, 0, start) for row in range(_ROWS)]):
            return False
        before = cache_size(rows.cache)
        if not self._feed(family, rows, [(row, start, start + 1) for row in range(_ROWS)]):
            return False
        family.cache_bytes = max(1, (cache_size(rows.cache) - before) // _ROWS)
        some = family.select(rows, [2, 0])
        for at in range(start + 1, end):
            # By turns, so that a copy that shares its tensors with the original is found out.
            if not self._feed(family, some, [(row, at, at + 1) for row in (2, 0)]):
                return False
            if not self._feed(family, rows, [(row, at, at + 1) for row in range(_ROWS)]):
                return False
        return True

    def _pieces(self, family: Family) -> bool:
        """A prompt in pieces of several tokens, the last of them shorter for some rows."""
        end = self.length
        cuts = (self.split - 1, self.split + 2, end - 2)
        rows = family.empty(_ROWS)
        start = 0
        for cut in cuts:
            if not self._feed(family, rows, [(row, start, cut) for row in range(_ROWS)]):
                return False
            start = cut
        if not self._feed(family, family.select(rows, [1, 0]), [(1, start, end), (0, start, start + 1)]):
            return False
        return self._feed(family, rows, [(row, start, start + 1) for row in range(_ROWS)]) and self._feed(
            family, rows, [(row, start + 1, end) for row in range(_ROWS)]
        )

    def _copies(self, family: Family) -> bool:
        """A prefix that is read once, copied, and continued in two ways."""
        rows = family.empty(1)
        shared, end = self.split, self.length
        if not self._feed(family, rows, [(0, 0, shared)]):
            return False
        both = family.select(rows, [0, 0, 0])
        if not self._feed(family, both, [(0, shared, end - 1), (1, shared, end - 1), (0, shared, end - 1)]):
            return False
        return self._feed(family, rows, [(1, shared, end - 2)])

    def _ragged(self, family: Family) -> bool:
        """Right-padded rows: a row that ends early, all going on, some dropped, others joined."""
        end = self.length
        rows = family.empty(_ROWS)
        short = self.split
        if not self._feed(family, rows, [(0, 0, short), (1, 0, short - 1), (2, 0, short)]):
            return False
        pieces = [(0, short, short), (1, short - 1, short - 1), (2, short, end - 3)]  # two have ended
        if not self._feed(family, rows, pieces):
            return False
        if not self._feed(
            family, rows, [(0, short, short + 1), (1, short - 1, short), (2, end - 3, end - 2)]
        ):
            return False
        kept = family.select(rows, [2, 1])
        other = family.empty(1)
        if not self._feed(family, other, [(0, 0, end - 2)]):
            return False
        joined = family.join([kept, other])
        if not self._feed(
            family, joined, [(2, end - 2, end - 1), (1, short, short + 2), (0, end - 2, end - 1)]
        ):
            return False
        last = [(2, end - 1, end), (1, short + 2, short + 3), (0, end - 1, end)]
        return self._feed(family, joined, last)

    def _feed(self, family: Family, rows: Rows, pieces: Sequence[tuple[int, int, int]]) -> bool:
        """Read tokens start..end of each row (row, start, end); whether all their logits agree."""
        counts = [end - start for _, start, end in pieces]
        tokens = right_padded([self.tokens[row, start:end] for row, start, end in pieces])
        wanted = torch.arange(tokens.shape[1])[None] < torch.tensor(counts)[:, None]
        given = family.inputs(tokens, counts, rows)
        output = self.model(**given)
        places = family.places(wanted, counts, rows)
        family.absorb(output, tokens, counts, rows)
        found = output.logits[places.to(output.logits.device)]
        expected = torch.cat([self.expected[row, start:end] for row, start, end in pieces])
        return self._agrees(found[None], expected[None])

    # --- comparing
    # ------------------------------------------------------------------------------------------------------

    def _plain(self, tokens: Tensor) -> Tensor:
        """Logits [B, N, V] of one forward without a cache."""
        Frequencies.of(self.model).reset()
        try:
            logits = self.model(input_ids=tokens, **self.plain).logits
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise FamilyError(
                f"{_name(self.model)} can't be run on {tokens.shape[1]} token ids alone "
                f"({type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}); it may need an "
                "image, an encoder or other inputs: only causal language models of text can be evaluated"
            ) from error
        if not isinstance(logits, Tensor) or logits.shape[:2] != tokens.shape:
            raise FamilyError(
                f"{_name(self.model)} doesn't give logits for each token; only causal language models can be "
                "evaluated"
            )
        return logits.float()

    def _check_causal(self, changed: Tensor) -> None:
        """Ask once more for the row alone: what shares a batch may have changed it instead.

        Raises:
            FamilyError: Logits change with a token behind them.
        """
        found, expected = self._plain(changed[:1])[:, :-1], self._plain(self.tokens[:1])[:, :-1]
        error = self._error(found, expected)
        if error > self._causal_tolerance:
            raise FamilyError(
                f"{_name(self.model)} is not a causal language model as it is configured: another token at "
                f"place {self.length} of a row changed logits before it, by {error:.1%} of their size. Its "
                "likelihoods would see the text that they are to predict. If it was trained as a decoder, "
                "set is_decoder: true in its config.json; otherwise evaluate another checkpoint"
            )

    def _agrees(self, found: Tensor, expected: Tensor) -> bool:
        return self._error(found, expected) <= self.tolerance

    def _error(self, found: Tensor, expected: Tensor) -> float:
        """The worst place's error, relative to the size of all logits; places that aren't finite don't count.

        nan when nothing is left to compare, which agrees with nothing.
        """
        if found.numel() == 0:
            return 0.0
        difference = found.float() - expected.float()
        places = difference.square().nanmean(-1).sqrt()
        places = places[places.isfinite()]
        return float(places.max()) / self.scale if places.numel() and self.scale > 0 else float("nan")


def cache_size(cache: Any) -> int:  # noqa: ANN401 - a cache of any class
    """Bytes of all tensors in a cache."""
    seen: set[int] = set()
    stack = [cache]
    total = 0
    while stack:
        part = stack.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            total += part.numel() * part.element_size()
        elif isinstance(part, dict):
            stack.extend(part.values())
        elif isinstance(part, (list, tuple)):
            stack.extend(part)
        elif "cache" in type(part).__module__ or "modeling_" in type(part).__module__:
            stack.extend(vars(part).values())
    return total


def _length(model: PreTrainedModel, declared: Declared) -> int:
    """Tokens of a row: beyond the declared windows where that is affordable, within what the model allows."""
    affordable = [window for window in declared.windows if window <= _AFFORDABLE_WINDOW]
    length = max([_TOKENS, *(2 * window + 8 for window in affordable)])
    frequencies = Frequencies.of(model)
    limits = [declared.longest, frequencies.moving, *frequencies.borders]
    return max(4, min([length, *(limit for limit in limits if limit)]))


def _tokens(model: PreTrainedModel, length: int, split: int) -> Tensor:
    """Three random rows [3, N]; the first two begin alike. No special tokens, which may stand for images."""
    words = model.get_input_embeddings()
    config_size = getattr(model.config, "vocab_size", None)
    sizes = [size for size in (getattr(words, "num_embeddings", None), config_size) if isinstance(size, int)]
    vocabulary = min(sizes, default=2)
    special = _special_ids(model.config.to_dict())
    allowed = [token for token in range(min(vocabulary, 4096)) if token not in special] or [0, 1]
    pick = torch.Generator().manual_seed(_SEED)
    chosen = torch.randint(len(allowed), (_ROWS, length), generator=pick)
    tokens = torch.tensor(allowed)[chosen]
    tokens[1, :split] = tokens[0, :split]
    return tokens.to(model.device)


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


def _size(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.square().mean().sqrt()) if finite.numel() else float("nan")


def _name(model: PreTrainedModel) -> str:
    return str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
