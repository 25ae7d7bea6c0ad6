"""The lm-eval task class of the LongBench YAMLs."""

import hashlib
import json
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, cast

from nsa_tasks.longbench import FAMILY
from nsa_tasks.longbench.cut import Cut, auto_limit, middle_cut
from nsa_tasks.longbench.datasets import dataset_of
from nsa_tasks.longbench.parameters import LongBenchParams
from nsa_tasks.longbench.prompts import load_prompts
from nsa_tasks.longbench.records import load_records
from nsa_tasks.longbench.scoring import load_scorers
from nsa_tasks.record_task import Documents, RecordTask


class LongBenchTask(RecordTask):
    """A dataset of LongBench: prompts cut in the middle, with a chat template where LongBench has one.

    A document has the record's answers, and of its text the SHA-256 alone. Nothing in it depends on the
    tokenizer, so that models with different ones pair. How many tokens a prompt had and kept is added to a
    sample's copy of its document once it is scored.
    """

    family = FAMILY

    def documents(self) -> Documents:
        """Read records and wording, and find the limit of a prompt.

        Raises:
            TaskParameterError: No window to cut by.
            TaskDataError: Records, prompts or scorers that can't be had.
        """
        params = cast("LongBenchParams", self.params)
        load_scorers()  # before anything is asked
        self.facts, e = dataset_of(self.form)
        self._prompts = load_prompts(self.facts, params.prompts, params.data_root)
        data = load_records(self.facts, e=e, root=params.data_root)
        self._records = {record["id"]: record for record in data.records}
        self._sizes: dict[str, Cut] = {}
        limit = params.max_prompt_tokens
        self.limit = auto_limit(self.form, self.told, self.tokens) if isinstance(limit, str) else limit
        about = {
            "max_prompt_tokens": self.limit,
            "truncation": f"middle, over {self.limit:,} tokens",
            "protocol": self._prompts.protocol,
            "prompt_hash": f"prompt:{self._prompts.sha256[:16]}",
            "data_hash": data.name,
        }
        return Documents([self._document(record) for record in data.records], about)

    def prompt_of(self, doc: Mapping[str, Any]) -> str:
        """A document's prompt, cut, before any chat template."""
        cut = middle_cut(self.tokens, self._prompts.fill(self._records[doc["id"]]), self.limit)
        self._sizes[doc["id"]] = cut
        return cut.text

    def reply_budget(self) -> int:
        """The dataset's own."""
        return self.facts.new_tokens

    def fewshot_context(self, doc: Mapping[str, Any], num_fewshot: int, **wording: Any) -> Any:  # noqa: ANN401
        """What is sent for a document: in the chat template that is asked for, unless LongBench has none."""
        if not self.facts.chat:
            wording |= {"apply_chat_template": False, "chat_template": None}
        return super().fewshot_context(doc, num_fewshot, **wording)

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """Score a document, and leave in it how long its prompt was: after it was hashed for pairing."""
        scores = super().process_results(doc, results)
        cut = self._sizes.get(doc["id"])
        if cut is not None and isinstance(doc, MutableMapping):
            doc["prompt_tokens"] = cut.kept
            if cut.acted:
                doc["cut_from"] = cut.tokens
        return scores

    def _document(self, record: Mapping[str, Any]) -> dict[str, Any]:
        asked = json.dumps([record["context"], record["input"]], ensure_ascii=False)
        return {
            "id": record["id"],
            "dataset": self.facts.name,
            "length": record["length"],
            "answers": record["answers"],
            "all_classes": record["all_classes"] or [],
            "record_sha256": hashlib.sha256(asked.encode()).hexdigest(),
        }
