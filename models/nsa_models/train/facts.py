"""Sequences of real text with facts sown in and questions asked later: what retrieval is learned from."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nsa_models.train.corpus import BOS, Corpus, Tokens
from nsa_models.train.recipe import FactsRecipe

Row = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]
"""Token ids and the mask of answer tokens, both [L]."""

STATEMENT = "One of the special magic {kind}s for{key} is:{value}."
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
ASK_ALL = "\nWhat are all the special magic {kind}s for{keys} mentioned in the provided text?"
ANSWER_ALL = " The special magic {kind}s for{keys} mentioned in the provided text are{values}.\n"
_KINDS = ("number", "uuid", "word")
_KEY_WORDS = (0.25, 0.6, 0.15)  # shares of keys of one, two and three words
_HYPHEN_SHARE = 0.3
_MOST_TOGETHER = 4  # facts that one question asks for at the most
_PREAMBLE_SHARE = 0.4
# Facts at the very start of the text, at most one a sequence: a depth that is never learned when it is rare.
_START_SHARE = 0.1
_LINE_SHARE = 0.1  # facts on a line of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A key and a value, with their tokens (each begins with a space)."""

    kind: str
    key: list[int]
    value: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """Tokens that go into the text."""

    tokens: list[int]
    answers: tuple[slice, ...] = ()
    """Where answers stand in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Facts that one question asks for."""

    statements: list[Insert]
    question: Insert
    in_order: bool = False
    """Values of one key: the answer names them in the order of the text, so they must stand in that order."""

    @property
    def size(self) -> int:
        """Tokens of statements and question."""
        return sum(len(statement.tokens) for statement in self.statements) + len(self.question.tokens)


class FactWriter:
    """Turns a stretch of text into a sequence of exactly L tokens with facts and questions in it.

    The same (seed, stage, step) always gives the same batch, whatever model, workers and interruptions.
    """

    def __init__(self, corpus: Corpus, recipe: FactsRecipe, seed: int) -> None:
        """Tokenise the templates and the word list once."""
        self.recipe = recipe
        self.seed = seed
        self.train, self.held_out = corpus.train, corpus.held_out
        self._tokenizer = corpus.tokenizer.backend_tokenizer
        self._bos = corpus.tokenizer.convert_tokens_to_ids(BOS)
        self._words = [self._encode(f" {word}") for word in corpus.words]
        self._joined = [self._encode(f"-{word}") for word in corpus.words]
        self._digits = [self._encode(str(digit))[0] for digit in range(10)]
        self._space, self._line, self._dot = (self._encode(text)[0] for text in (" ", "\n", "."))
        self._one_on_a_line, self._one_after_a_space = self._encode("One"), self._encode(" One")
        # Lengths are counted before places are chosen: the two may be exchanged only when of one size.
        self._only_lines = len(self._one_on_a_line) != len(self._one_after_a_space)
        self._comma, self._and = self._encode(","), self._encode(" and")
        self._templates: dict[tuple[str, str], list[str | list[int]]] = {}

    def batch(self, *, stage: int, step: int, rows: range, length: int) -> tuple[Tensor, Tensor]:
        """Training sequences ids [rows, length] and a mask of answer tokens, of the same shape.

        Args:
            stage: Of the curriculum.
            step: Of the stage.
            rows: Which of the step's rows: each depends on its own number alone.
            length: Tokens.
        """
        made = [self.sequence(np.random.default_rng((self.seed, stage, step, row)), length) for row in rows]
        return _stack(made, length)

    def quiz(self, *, rows: int, length: int, seed: int, only: range | None = None) -> tuple[Tensor, Tensor]:
        """Held-out test: one number in unseen text, asked for at the very end; depths even over the rows.

        Args:
            rows: Of the test.
            length: Tokens.
            seed: Of the test.
            only: The rows to make; None = all.
        """
        made = []
        for row in range(rows) if only is None else only:
            rng = np.random.default_rng((self.seed, 1_000_003, seed, row))
            item = self._single(self._fact(rng, "number"), QUESTIONS[0][1])
            room = length - 1 - item.size
            if room < 1:
                raise ValueError(f"{length} tokens are too few for a fact and its question: test longer ones")
            filler = _slice(self.held_out, rng, room)
            place = int(room * row / max(1, rows - 1))
            statement = self._joined_to_text(item.statements[0], filler, place, line=place == 0)
            made.append(self._assemble(filler, [(place, 0, statement), (room, 1, item.question)], []))
        return _stack(made, length)

    def sequence(self, rng: np.random.Generator, length: int) -> Row:
        """One training sequence of `length` tokens and the mask of its answer tokens."""
        recipe = self.recipe
        head = self._encode(PREAMBLE.format(kind="number")) if rng.random() < _PREAMBLE_SHARE else []
        items: list[Item] = []
        used, wanted = 1 + len(head), max(1, length // recipe.spacing(length))
        if used >= length:
            head, used = [], 1
        if wanted >= _MOST_TOGETHER and rng.random() < recipe.together:
            together = self._several(rng, int(rng.integers(2, _MOST_TOGETHER + 1)))
            if used + together.size < length:  # here and below: at least one token of text stays
                items.append(together)
                used += together.size
        while sum(len(item.statements) for item in items) < wanted:
            fact = self._fact(rng, str(rng.choice(_KINDS, p=self._kind_shares())))
            template = rng.choice(len(QUESTIONS), p=[share for share, _ in QUESTIONS])
            item = self._single(fact, QUESTIONS[template][1])
            if used + item.size >= length:
                break
            items.append(item)
            used += item.size
        filler = _slice(self.train, rng, length - used)
        return self._assemble(filler, self._scatter(rng, items, filler), head)

    def _scatter(
        self, rng: np.random.Generator, items: list[Item], filler: Tokens
    ) -> list[tuple[int, float, Insert]]:
        """Choose where facts stand and questions are asked: (place in the filler, order there, tokens)."""
        recipe, room = self.recipe, len(filler)
        stops = np.flatnonzero(filler == self._dot) + 1
        at_end = rng.random() < recipe.final_quiz
        events: list[tuple[int, float, Insert]] = []
        started = False
        for item in items:
            places = [int(rng.integers(1, room + 1)) for _ in item.statements]
            if len(stops):  # half of the facts between sentences, half anywhere
                nearest = np.minimum(np.searchsorted(stops, places), len(stops) - 1)
                between = rng.random(len(places)) < 0.5
                places = [int(stops[n]) if b else p for p, n, b in zip(places, nearest, between, strict=True)]
            if not started and rng.random() < _START_SHARE:
                places[0], started = 0, True
            if item.in_order:
                places.sort()
            for i, (place, statement) in enumerate(zip(places, item.statements, strict=True)):
                line = place == 0 or rng.random() < _LINE_SHARE
                joined = self._joined_to_text(statement, filler, place, line=line)
                events.append((place, i / len(places), joined))
            rest = room - max(places)
            last = room - rest
            if at_end:
                asked = room
            elif rng.random() < recipe.far:
                asked = last + int(rng.integers(0, rest + 1))
            else:
                asked = last + int(np.exp(rng.uniform(0.0, np.log(rest + 1.0)))) - 1
            events.append((asked, 1.0 + rng.random(), item.question))
        return events

    def _assemble(self, filler: Tokens, events: list[tuple[int, float, Insert]], head: list[int]) -> Row:
        parts: list[npt.ArrayLike] = [[self._bos], head]
        size, done = 1 + len(head), 0
        spans: list[slice] = []
        for place, _, insert in sorted(events, key=lambda event: event[:2]):
            parts += [filler[done:place], insert.tokens]
            size += place - done
            spans += [slice(size + span.start, size + span.stop) for span in insert.answers]
            size += len(insert.tokens)
            done = place
        parts.append(filler[done:])
        ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
        mask = np.zeros(len(ids), dtype=np.bool_)
        for span in spans:
            mask[span] = True
        return ids, mask

    def _joined_to_text(self, statement: Insert, filler: Tokens, place: int, *, line: bool) -> Insert:
        """A statement within a line (" One ..."), or on its own ("One ..." after a newline in the text)."""
        line = line or self._only_lines
        if line and place:
            filler[place - 1] = self._line
        first = self._one_on_a_line if line else self._one_after_a_space
        return Insert(tokens=first + statement.tokens[len(self._one_on_a_line) :])

    def _single(self, fact: Fact, question: str) -> Item:
        """One fact and a question about it."""
        return Item(
            statements=[self._fill(STATEMENT, fact.kind, {"key": [fact.key], "value": [fact.value]})],
            question=self._fill(question, fact.kind, {"key": [fact.key], "value": [fact.value]}),
        )

    def _several(self, rng: np.random.Generator, count: int) -> Item:
        """Several facts asked for at once: several keys, or several values of one key."""
        facts = [self._fact(rng, "number") for _ in range(count)]
        keys = [fact.key for fact in facts]
        if rng.random() < 0.5:
            keys = keys[:1]
        values = [fact.value for fact in facts]
        statements = [
            self._fill(STATEMENT, "number", {"key": [keys[min(i, len(keys) - 1)]], "value": [value]})
            for i, value in enumerate(values)
        ]
        question = self._fill(ASK_ALL + ANSWER_ALL, "number", {"keys": keys, "values": values})
        return Item(statements=statements, question=question, in_order=len(keys) == 1)

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
            value = [self._space, *(self._digits[digit] for digit in digits)]
        elif kind == "uuid":
            value = self._encode(f" {uuid.UUID(bytes=rng.bytes(16), version=4)}")
        else:
            value = list(self._words[rng.integers(len(self._words))])
            if rng.random() < 0.5:
                value += self._joined[rng.integers(len(self._joined))]
        return Fact(kind=kind, key=key, value=value)

    def _fill(self, template: str, kind: str, lists: dict[str, list[list[int]]]) -> Insert:
        """Tokens of a template with its lists ("a", "a, b, and c") filled in; values are answers."""
        parts = self._templates.get((template, kind))
        if parts is None:
            text = template.replace("{kind}", kind)
            for name in ("key", "keys", "value", "values"):
                text = text.replace(f"{{{name}}}", f"\0{name}\0")
            parts = [part if part in lists else self._encode(part) for part in text.split("\0") if part]
            self._templates[template, kind] = parts
        tokens: list[int] = []
        answers: list[slice] = []
        for part in parts:
            if not isinstance(part, str):
                tokens += part
                continue
            for i, entry in enumerate(lists[part]):
                if i:
                    tokens += self._comma + (self._and if i == len(lists[part]) - 1 else [])
                if part.startswith("value"):
                    answers.append(slice(len(tokens), len(tokens) + len(entry)))
                tokens += entry
        return Insert(tokens=tokens, answers=tuple(answers))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _slice(tokens: Tokens, rng: np.random.Generator, size: int) -> Tokens:
    if size > len(tokens):
        raise ValueError(
            f"the text has {len(tokens)} tokens, a sequence needs {size}: add text or lower the length"
        )
    start = int(rng.integers(0, len(tokens) - size + 1))
    return tokens[start : start + size].copy()


def _stack(made: list[Row], length: int) -> tuple[Tensor, Tensor]:
    ids, answers = (
        np.empty((len(made), length), dtype=np.int64),
        np.empty((len(made), length), dtype=np.bool_),
    )
    for index, (row, mask) in enumerate(made):
        ids[index], answers[index] = row, mask
    return torch.from_numpy(ids), torch.from_numpy(answers)
