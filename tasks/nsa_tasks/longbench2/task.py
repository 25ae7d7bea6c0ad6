"""The lm-eval task classes of the LongBench v2 YAMLs."""

import hashlib
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, cast

from nsa_tasks._errors import TaskDataError
from nsa_tasks._files import joint_sha256
from nsa_tasks.data import Data, load_data
from nsa_tasks.follow_up import COUNT, FollowUp, FollowUps
from nsa_tasks.longbench2 import FAMILY
from nsa_tasks.longbench2.family import LongBench2Params
from nsa_tasks.longbench2.prompts import cut_middle, fill
from nsa_tasks.longbench2.scoring import describe, score_document
from nsa_tasks.longbench2.sources import FIELDS, OF_TASK, records, template
from nsa_tasks.record_task import Documents, RecordTask

_ANSWERS = ("A", "B", "C", "D")


class LongBench2Task(RecordTask):
    """Questions asked once: with their text, or without it."""

    family = FAMILY

    @property
    def own(self) -> LongBench2Params:
        """The task's parameters."""
        return cast("LongBench2Params", self.params)

    def documents(self) -> Documents:
        """Read records and templates; the long texts stay here."""
        root = self.own.data_root
        data = load_data(records(root), root)
        read = [load_data(template(name), root) for name in OF_TASK[self.form]]
        self._templates = [str(found.records[0]["text"]) for found in read]
        self._contexts: dict[str, str] = {}
        self._lengths: dict[str, int] = {}
        rows = [self._row(data, number) for number in range(len(data.records))]
        prompts = joint_sha256([found.sha256 for found in read])
        about = {
            "data_hash": data.name,
            "prompt_hash": f"prompt:{prompts[:16]}",
            "truncation": f"middle, over {self.own.max_length:,} tokens",
        }
        return Documents(rows, about)

    def prompt_of(self, doc: Mapping[str, Any]) -> str:
        """The first request: the template filled in, and cut in the middle where it is too long."""
        filled = fill(self._templates[0], doc, context=self._contexts[doc["_id"]])
        text, self._lengths[doc["_id"]] = self._cut(filled)
        return text

    def reply_budget(self) -> int:
        """Of the first request's reply."""
        return self.own.new_tokens

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """Score a question, and leave in it what its replies hold instead of the answer."""
        dialogues = self._dialogues(doc, results)
        reasons = [describe(found, doc["answer"]) for found in dialogues]
        if isinstance(doc, MutableMapping):
            whole = self._lengths[doc["_id"]]
            doc["prompt_tokens"] = min(whole, self.own.max_length)
            if whole > self.own.max_length:
                doc["cut_from"] = whole
            if any(reasons):
                doc["reasons"] = reasons
            if follow_ups := sum(len(found) - 1 for found in dialogues):
                doc[COUNT] = follow_ups
        return score_document(
            doc, dialogues, compensated=self.own.compensated, requests=len(OF_TASK[self.form])
        )

    def _dialogues(self, doc: Mapping[str, Any], results: Sequence[Any]) -> list[tuple[str, ...]]:
        replies = results[0] if isinstance(results[0], list) else [results[0]]
        return [(str(reply),) for reply in replies]

    def _cut(self, prompt: str) -> tuple[str, int]:
        return cut_middle(prompt, self.tokens.tokenizer, self.own.max_length)

    def _row(self, data: Data, number: int) -> dict[str, Any]:
        record, place = data.records[number], data.places[number]
        for field in FIELDS:
            if not isinstance(record[field], str):
                raise TaskDataError(f"{place}: {field}: expected a text, got {type(record[field]).__name__}.")
        if record["answer"] not in _ANSWERS:
            raise TaskDataError(f"{place}: answer: expected one of A, B, C, D, got {record['answer']!r}.")
        name = record["_id"]
        if name in self._contexts:
            raise TaskDataError(f"{place}: a second record with the _id {name!r}.")
        self._contexts[name] = record["context"]
        row = {field: record[field] for field in FIELDS if field not in ("context", "length")}
        digest = hashlib.sha256(record["context"].encode("utf-8", "surrogatepass")).hexdigest()
        # `length` of a document is a number of tokens elsewhere; here it is short, medium or long.
        return {**row, "id": name, "length_class": record["length"], "context_sha256": digest}


class LongBench2CotTask(FollowUps, LongBench2Task):
    """Questions asked twice: for thoughts, then for the answer, with the thoughts in place of the text."""

    def reply_budget(self) -> int:
        """Of the thoughts."""
        budget = self.own.cot_tokens
        assert budget is not None, "the task takes it"
        return budget

    def follow_up(self, doc: Mapping[str, Any], reply: str) -> FollowUp | None:
        """Ask for the answer; an empty reply has nothing to ask it from."""
        if reply == "":
            return None
        filled = fill(self._templates[1], doc, reply=reply)
        return FollowUp(prompt=self._cut(filled)[0], new_tokens=self.own.new_tokens)

    def _dialogues(self, doc: Mapping[str, Any], results: Sequence[Any]) -> list[tuple[str, ...]]:
        return self.dialogues(doc, results)
