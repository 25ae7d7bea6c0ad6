"""Sequences of real text with facts sown in and questions asked later: what the twins learn retrieval from."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nsa_models.train.corpus import Corpus, Tokens
from nsa_models.train.recipe import FactsRecipe

Ids = npt.NDArray[np.int64]

STATEMENT = " One of the special magic {kind}s for{key} is:{value}."
PREAMBLE = (
    "Some special magic {kind}s are hidden within the following text. Make sure to memorize it."
    " I will quiz you about the {kind}s afterwards.\n"
)
# The first is the wording that needle tasks ask with; the others keep the model from leaning on one phrase.
QUESTIONS = (
    (
        0.5,
        "\nWhat is the special magic {kind} for{key} mentioned in the provided text?"
        " The special magic {kind} for{key} mentioned in the provided text is{value}.\n",
    ),
    (0.3, " The special magic {kind} for{key} is:{value}."),
    (
        0.2,
        "\nWhat is the special magic {kind} for{key}? The special magic {kind} for{key} is{value}.\n",
    ),
)
_KINDS = ("number", "uuid", "word")
_KEY_WORDS = (0.25, 0.6, 0.15)  # shares of keys of one, two and three words
_HYPHEN_SHARE = 0.3
_PREAMBLE_SHARE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A key and a value, with their tokens (each begins with a space)."""

    kind: str
    key: list[int]
    value: list[int]


class FactWriter:
    """Turns a stretch of text into a sequence of exactly L tokens with facts and questions in it.

    The same (seed, stage, step) always gives the same batch, whatever the model, the workers or an interruption.
    """

    def __init__(self, corpus: Corpus, recipe: FactsRecipe, seed: int) -> None:
        """Tokenise the templates and the word list once."""
        self.recipe = recipe
        self.seed = seed
        self.train, self.held_out = corpus.train, corpus.held_out
        self._tokenizer = corpus.tokenizer.backend_tokenizer
        bos, dot = corpus.tokenizer.bos_token_id, self._encode(".")[0]
        self._bos, self._dot = int(bos), dot  # type: ignore[arg-type]
        self._words = [self._encode(f" {word}") for word in corpus.words]
        self._joined = [self._encode(f"-{word}") for word in corpus.words]
        self._digits = [self._encode(str(digit))[0] for digit in range(10)]
        self._space = self._encode(" ")
        self._pieces: dict[tuple[str, str], list[str | list[int]]] = {}

    def batch(self, *, stage: int, step: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Training sequences ids [rows, length] and a mask of answer tokens, of the same shape."""
        made = [self.sequence(np.random.default_rng((self.seed, stage, step, row)), length) for row in range(rows)]
        return _stack(made)

    def quiz(self, *, rows: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
        """Held-out test: one number in unseen text, asked for at the very end; depths even over the rows."""
        made = []
        for row in range(rows):
            rng = np.random.default_rng((self.seed, 1_000_003, seed, row))
            fact = self._fact(rng, "number")
            statement, _ = self._fill(STATEMENT, fact)
            question, answer = self._fill(QUESTIONS[0][1], fact)
            room = length - 1 - len(statement) - len(question)
            filler = _slice(self.held_out, rng, room)
            place = int(room * row / max(1, rows - 1))
            made.append(self._join(filler, [(place, 0, statement, None), (room, 1, question, answer)]))
        return _stack(made)

    def sequence(self, rng: np.random.Generator, length: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """One training sequence of `length` tokens and the mask of its answer tokens."""
        recipe = self.recipe
        pieces: list[tuple[list[int], list[int], slice]] = []
        head: list[int] = []
        if rng.random() < _PREAMBLE_SHARE:
            head = self._encode(PREAMBLE.format(kind="number"))
        used = 1 + len(head)
        for _ in range(max(1, length // recipe.tokens_per_fact)):
            fact = self._fact(rng, str(rng.choice(_KINDS, p=self._kind_shares())))
            statement, _ = self._fill(STATEMENT, fact)
            template = rng.choice(len(QUESTIONS), p=[share for share, _ in QUESTIONS])
            question, answer = self._fill(QUESTIONS[template][1], fact)
            if used + len(statement) + len(question) > length:
                break
            assert answer is not None
            pieces.append((statement, question, answer))
            used += len(statement) + len(question)
        room = length - used
        filler = _slice(self.train, rng, room)
        stops = np.flatnonzero(filler == self._dot) + 1
        quiz_at_end = rng.random() < recipe.final_quiz
        events: list[tuple[int, float, list[int], slice | None]] = []
        for statement, question, answer in pieces:
            place = int(rng.integers(0, room + 1))
            if len(stops) and rng.random() < 0.5:  # half of the facts between sentences, half anywhere
                place = int(stops[min(np.searchsorted(stops, place), len(stops) - 1)])
            rest = room - place
            if quiz_at_end:
                asked = room
            elif rng.random() < recipe.far:
                asked = place + int(rng.integers(0, rest + 1))
            else:
                asked = place + int(np.exp(rng.uniform(0.0, np.log(rest + 1.0)))) - 1
            events.append((place, 0.0, statement, None))
            events.append((asked, 1.0 + rng.random(), question, answer))
        return self._join(filler, events, head)

    def _join(
        self,
        filler: Tokens,
        events: list[tuple[int, float, list[int], slice | None]],
        head: list[int] | None = None,
    ) -> tuple[Ids, npt.NDArray[np.bool_]]:
        parts: list[npt.ArrayLike] = [[self._bos], head or []]
        size, done = 1 + len(head or []), 0
        spans: list[slice] = []
        for place, _, tokens, answer in sorted(events, key=lambda event: event[:2]):
            parts += [filler[done:place], tokens]
            size += place - done
            if answer is not None:
                spans.append(slice(size + answer.start, size + answer.stop))
            size += len(tokens)
            done = place
        parts.append(filler[done:])
        ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
        mask = np.zeros(len(ids), dtype=np.bool_)
        for span in spans:
            mask[span] = True
        return ids, mask

    def _kind_shares(self) -> list[float]:
        number, identifier = self.recipe.number, self.recipe.uuid
        return [number, identifier, max(0.0, 1.0 - number - identifier)]

    def _fact(self, rng: np.random.Generator, kind: str) -> Fact:
        further = self._joined if rng.random() < _HYPHEN_SHARE else self._words
        key = list(self._words[rng.integers(len(self._words))])
        for _ in range(int(rng.choice(3, p=_KEY_WORDS))):
            key += further[rng.integers(len(further))]
        if kind == "number":
            digits = [rng.integers(1, 10), *rng.integers(0, 10, size=6)]
            value = self._space + [self._digits[digit] for digit in digits]
        elif kind == "uuid":
            value = self._encode(f" {uuid.UUID(bytes=rng.bytes(16), version=4)}")
        else:
            value = list(self._words[rng.integers(len(self._words))])
        return Fact(kind=kind, key=key, value=value)

    def _fill(self, template: str, fact: Fact) -> tuple[list[int], slice | None]:
        """Tokens of a template, and where the value stands in them."""
        found = self._pieces.get((template, fact.kind))
        if found is None:
            text = template.replace("{kind}", fact.kind)
            found = []
            for piece in text.replace("{key}", "\0key\0").replace("{value}", "\0value\0").split("\0"):
                found.append(piece if piece in ("key", "value") else self._encode(piece))
            self._pieces[template, fact.kind] = found
        tokens: list[int] = []
        span = None
        for piece in found:
            if piece == "value":
                span = slice(len(tokens), len(tokens) + len(fact.value))
            tokens += fact.key if piece == "key" else fact.value if piece == "value" else piece  # type: ignore[arg-type]
        return tokens, span

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _slice(tokens: Tokens, rng: np.random.Generator, size: int) -> Tokens:
    if size > len(tokens):
        raise ValueError(f"the text has {len(tokens)} tokens, a sequence needs {size}: add text or lower the length")
    start = int(rng.integers(0, len(tokens) - size + 1))
    return tokens[start : start + size]


def _stack(made: list[tuple[Ids, npt.NDArray[np.bool_]]]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.stack([ids for ids, _ in made])), torch.from_numpy(np.stack([mask for _, mask in made]))
