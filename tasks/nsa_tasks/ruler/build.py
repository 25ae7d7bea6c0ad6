"""Building the documents of a RULER task: one stream of draws a length, samples numbered in its order.

As in the official scripts, a length is drawn by itself, and the search for its size takes from the same
stream as its samples. With a tokenizer that adds no BOS and without a chat template the requests are the
official ones to the byte, given the same words, text and records; with either, their tokens are counted, and
the size may be another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.ruler.cwe import CweGenerator
from nsa_tasks.ruler.essays import open_essay, splitter
from nsa_tasks.ruler.fit import Drawn, Generator, fitted, samples_ahead, search
from nsa_tasks.ruler.fwe import FweGenerator
from nsa_tasks.ruler.niah import NiahGenerator
from nsa_tasks.ruler.parameters import RulerParams, takes_essay
from nsa_tasks.ruler.qa import QaGenerator
from nsa_tasks.ruler.questions import QaData, load_questions
from nsa_tasks.ruler.settings import Cwe, Fwe, Niah, Qa, Vt
from nsa_tasks.ruler.vt import VtGenerator
from nsa_tasks.ruler.words import key_words, list_words, longer_list

Samples = Iterable[tuple[Drawn, int, int]]
"""In order: each sample, its size, and its request's tokens."""


@dataclass(frozen=True, slots=True)
class Counter:
    """Counts requests and texts."""

    tokens: RequestTokens

    def request(self, prompt: str, prefix: str) -> int:
        """Exact tokens of a request without its reply."""
        return self.tokens.count(self.tokens.render(prompt, prefix))

    def plain(self, text: str) -> int:
        """Tokens of a text alone."""
        return len(self.tokens.encode(text, special=False).ids)

    def template(self) -> int:
        """Tokens that a chat template or a system instruction adds; BOS isn't among them."""
        return self.request("a", "b") - self.tokens.count("a b")


def documents(params: RulerParams, tokens: RequestTokens) -> list[dict[str, Any]]:
    """Build every document, in the order length, sample.

    Args:
        params: Resolved parameters.
        tokens: Counts a request's tokens.

    Raises:
        TaskParameterError: A length that the task can't be made at, or more samples than there are questions.
        TaskDataError: Words, text or records that aren't at hand, and how to get them.
    """
    counter = Counter(tokens)
    data = open_questions(params)
    if data is not None and params.samples > len(data.questions):
        raise TaskParameterError(
            f"{params.task}: samples = {params.samples:,}, but there are {len(data.questions):,} questions."
        )
    return [document for length in params.lengths for document in _of_length(params, length, counter, data)]


def open_questions(params: RulerParams) -> QaData | None:
    """Load a question-answering task's records; None for the other tasks."""
    setting = params.setting
    return load_questions(setting.dataset, params.root) if isinstance(setting, Qa) else None


def content_hashes(params: RulerParams) -> dict[str, str]:
    """What a task's documents were made from, by content: `text_hash` and `data_hash` for the results."""
    found = {}
    if takes_essay(params.setting) and params.essay not in (None, "generated"):
        name = open_essay(str(params.essay), params.root).name
        found["text_hash" if name.startswith("text:") else "data_hash"] = name
    data = open_questions(params)
    if data is not None:
        found["data_hash"] = data.name
    return found


def _of_length(
    params: RulerParams, length: int, counter: Counter, data: QaData | None
) -> list[dict[str, Any]]:
    setting = params.setting
    made = []
    try:
        for sample, (drawn, size, tokens) in enumerate(_samples(params, length, counter, data)):
            made.append(
                {
                    "id": f"{params.task}:L{length}:S{sample}",
                    "input": drawn.prompt,
                    "gen_prefix": drawn.prefix,
                    "outputs": list(drawn.answers),
                    "answer": ", ".join(drawn.answers),
                    "length": length,
                    "sample": sample,
                    "seed": params.random_seed,
                    "size": size,
                    "prompt_tokens": tokens,
                    "new_tokens": setting.new_tokens,
                }
            )
    except TaskParameterError as error:
        raise TaskParameterError(f"{params.task}: {error}") from None
    return made


def _samples(params: RulerParams, length: int, counter: Counter, data: QaData | None) -> Samples:
    setting, count = params.setting, counter.request
    numbers, threaded = range(params.samples), counter.tokens.for_threads
    if isinstance(setting, Fwe):
        frequent = FweGenerator(setting, length, params.random_seed, count, counter.template())
        return frequent.samples_ahead(params.samples) if threaded else [frequent.next() for _ in numbers]
    generator, new_tokens = _generator(params, length, counter, data), setting.new_tokens
    size = search(generator, length, new_tokens, count)
    if threaded:
        return samples_ahead(generator, params.samples, size, length, new_tokens, count)
    return [fitted(generator, index, size, length, new_tokens, count) for index in numbers]


def _generator(params: RulerParams, length: int, counter: Counter, data: QaData | None) -> Generator:
    setting, seed, official = params.setting, params.random_seed, params.official
    if isinstance(setting, Niah):
        essay = takes_essay(setting)
        return NiahGenerator(
            setting,
            length,
            seed,
            words=key_words(official) if setting.key == "words" else (),
            essay=open_essay(str(params.essay), params.root) if essay else None,
            split=splitter(official) if essay else None,
        )
    if isinstance(setting, Vt):
        return VtGenerator(setting, length, seed, counter.plain)
    if isinstance(setting, Cwe):
        return CweGenerator(
            setting,
            length,
            seed,
            words=list_words(official, seed),
            longer=lambda: longer_list(official, params.root),
        )
    if data is None:
        raise ValueError(f"{params.task} has no records")
    return QaGenerator(data, seed)
