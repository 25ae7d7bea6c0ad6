"""LongBench's records: local files as its data.zip holds them, else that archive from the hub."""

import re
from collections.abc import Mapping
from typing import Any

from nsa_tasks._errors import TaskDataError
from nsa_tasks.data import Data, DataSource, load_data, local_files
from nsa_tasks.longbench.datasets import Dataset

FOLDERS = ("longbench/v1", "longbench/v1/data")
"""Where a dataset's file may lie under the data root: by itself, or where data.zip was unpacked."""
_HUB = "zai-org/LongBench"
_FIELDS = ("input", "context", "answers", "length", "all_classes", "_id")
# What a right answer has to hold for the scorer to read it: LongBench's patterns.
_NUMBERED = {"retrieval": re.compile(r"Paragraph (\d+)"), "retrieval_zh": re.compile(r"段落(\d+)")}


def source_of(dataset: Dataset, *, e: bool, root: str | None = None) -> DataSource:
    """Where a dataset's records come from: of `FOLDERS` the one that has them, else the first."""
    file = f"{dataset.name}_e.jsonl" if e else f"{dataset.name}.jsonl"
    found = [
        DataSource(
            file=f"{folder}/{file}",
            how=f"Unpack data.zip of huggingface.co/datasets/{_HUB} in longbench/v1 there.",
            fields=_FIELDS,
            hub=_HUB,
            hub_file=f"data.zip/data/{file}",
            licence="MIT; the texts keep their own terms",
        )
        for folder in FOLDERS
    ]
    return next((one for one in found if local_files(one, root)), found[0])


def load_records(dataset: Dataset, *, e: bool, root: str | None) -> Data:
    """Load a dataset's records, each with an `id` of its own.

    Args:
        dataset: The dataset.
        e: LongBench-E's records of it.
        root: The parameter `data_root`.

    Raises:
        TaskDataError: They can't be had, or one can't be scored, by its file and line.
    """
    data = load_data(source_of(dataset, e=e, root=root), root)
    seen: dict[str, int] = {}
    for place, record in zip(data.places, data.records, strict=True):
        if wrong := _wrong(dataset, record):
            raise TaskDataError(f"{place}: {wrong}")
        name = str(record["_id"])
        seen[name] = seen.get(name, 0) + 1
        record["id"] = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return data


def _wrong(dataset: Dataset, record: Mapping[str, Any]) -> str:
    """What makes a record useless; nothing where it can be asked and scored."""
    for field in ("input", "context"):
        if not isinstance(record[field], str):
            return f"{field}: expected text, got {type(record[field]).__name__}."
    answers = record["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) for text in answers):
        return "answers: expected a list with at least one text."
    if isinstance(record["length"], bool) or not isinstance(record["length"], int):
        return f"length: expected a whole number, got {record['length']!r}."
    classes = record["all_classes"]
    if dataset.metric == "classification" and not (
        isinstance(classes, list) and classes and all(isinstance(text, str) for text in classes)
    ):
        return "all_classes: expected a list with the names of the classes."
    pattern = _NUMBERED.get(dataset.metric)
    unread = [text for text in answers if pattern and not pattern.search(text)]
    return f"answers: {unread[0]!r} names no paragraph." if unread else ""
