"""Documents and questions of the two question-answering tasks, read as the official generator reads them."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nsa_tasks._errors import TaskDataError
from nsa_tasks.data import Data, load_data
from nsa_tasks.ruler.sources import SOURCES


@dataclass(frozen=True, slots=True)
class Question:
    """One question, with the documents that belong to it."""

    query: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    """Documents that come with it: SQuAD's paragraph, HotpotQA's ten."""
    more: tuple[int, ...] = ()
    """Documents that come next: the other paragraphs of SQuAD's article."""


@dataclass(frozen=True, slots=True)
class QaData:
    """A data set's questions and documents."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]
    """Unique and sorted; questions name them by their number."""
    name: str
    """As `Data.name`."""


def load_questions(dataset: str, root: str) -> QaData:
    """Load a data set: the official file, or the same records from the hub.

    Args:
        dataset: "squad" or "hotpotqa".
        root: The parameter `data_root`.

    Raises:
        TaskDataError: Not there, or a record of another shape, by its place.
    """
    data = load_data(SOURCES[dataset], root)
    return replace(_read(dataset, data), name=data.name)


def _read(dataset: str, data: Data) -> QaData:
    places = data.places or tuple(f"record {i}" for i in range(1, len(data.records) + 1))
    read = squad if dataset == "squad" else hotpotqa
    number = 0
    try:
        if dataset == "squad" and "paragraphs" not in data.records[0]:
            return squad(_articles(data.records))

        def counted() -> Iterator[Mapping[str, Any]]:
            nonlocal number
            for number, record in enumerate(data.records):  # noqa: B007  (read below)
                yield record

        return read(counted())
    except (KeyError, TypeError, ValueError) as error:
        raise TaskDataError(
            f"{places[number]}: not a record of {SOURCES[dataset].file} ({type(error).__name__}: {error}). "
            f"{SOURCES[dataset].how}"
        ) from None


def squad(articles: Iterable[Mapping[str, Any]]) -> QaData:
    """Read SQuAD's articles: answerable questions alone, in the file's order."""
    listed = [
        [(str(paragraph["context"]), list(paragraph["qas"])) for paragraph in article["paragraphs"]]
        for article in articles
    ]
    documents = sorted({context for article in listed for context, _ in article})
    number = {document: i for i, document in enumerate(documents)}
    questions = []
    for article in listed:
        own = [number[context] for context, _ in article]
        for context, asked in article:
            gold = number[context]
            more = tuple(i for i in own if i != gold)
            questions += [
                Question(str(qa["question"]), tuple(str(a["text"]) for a in qa["answers"]), (gold,), more)
                for qa in asked
                if not qa["is_impossible"]
            ]
    return QaData(tuple(questions), tuple(documents), "")


def hotpotqa(records: Iterable[Mapping[str, Any]]) -> QaData:
    """Read HotpotQA's records: ten paragraphs each, a document's title on a line before its sentences."""
    listed = [
        (
            str(record["question"]),
            str(record["answer"]),
            [f"{title}\n{''.join(text)}" for title, text in _paragraphs(record)],
        )
        for record in records
    ]
    documents = sorted({text for _, _, texts in listed for text in texts})
    number = {document: i for i, document in enumerate(documents)}
    return QaData(
        tuple(
            Question(query, (answer,), tuple(number[text] for text in texts))
            for query, answer, texts in listed
        ),
        tuple(documents),
        "",
    )


def _paragraphs(record: Mapping[str, Any]) -> Iterable[tuple[str, list[str]]]:
    context = record["context"]
    if isinstance(context, Mapping):  # the hub's columns
        return list(zip(context["title"], context["sentences"], strict=True))
    return [(title, sentences) for title, sentences in context]


def _articles(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put the hub's rows, one a question, back into articles and paragraphs."""
    return [
        {
            "paragraphs": [
                {
                    "context": context,
                    "qas": [
                        {
                            "question": row["question"],
                            "is_impossible": not row["answers"]["text"],
                            "answers": [{"text": text} for text in row["answers"]["text"]],
                        }
                        for row in same
                    ],
                }
                for context, same in itertools.groupby(article, key=lambda row: row["context"])
            ]
        }
        for _, article in itertools.groupby(rows, key=lambda row: row["title"])
    ]
