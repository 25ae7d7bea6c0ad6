"""The lm-eval task class of the LongBench YAMLs."""

import hashlib
import json
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, cast

import datasets
from lm_eval.api.task import ConfigurableTask

from nsa_tasks._tokens import request_tokens
from nsa_tasks.family import Params
from nsa_tasks.longbench import FAMILY
from nsa_tasks.longbench.cut import Cut, default_limit, find_window, middle_cut
from nsa_tasks.longbench.datasets import dataset_of
from nsa_tasks.longbench.parameters import LongBenchParams
from nsa_tasks.longbench.prompts import load_prompts
from nsa_tasks.longbench.records import load_records
from nsa_tasks.longbench.scoring import load_scorers
from nsa_tasks.sampling import EveryReply


class LongBenchTask(EveryReply, ConfigurableTask):
    """A dataset of LongBench: prompts cut in the middle, with a chat template where LongBench has one.

    A document has the record's answers, and of its text the SHA-256 alone: lm-eval writes it beside the
    requests made of it. Nothing in it depends on the tokenizer, so that models with different ones pair. How
    many tokens a prompt had and kept is added to a sample's copy of its document once it is scored.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read parameters, records and wording.

        Args:
            config: The YAML's keys, with the run's metadata merged in. `params` holds parameters that were
                resolved before (`task_spec` puts them there); without it the metadata is read.

        Raises:
            TaskParameterError: A parameter or tokenizer that cannot be used, or no window to cut by.
            TaskDataError: Records, prompts or scorers that can't be had.
        """
        fields = {key: value for key, value in config.items() if key not in ("class", "params")}
        self.form: str = fields["dataset_kwargs"]["form"]
        metadata = fields["metadata"]
        given = config.get("params")
        resolved = given if isinstance(given, Params) else FAMILY.from_metadata(self.form, metadata)
        params = cast("LongBenchParams", resolved)
        load_scorers()  # before anything is asked
        self.facts, e = dataset_of(self.form)
        self._prompts = load_prompts(self.facts, params.prompts, params.data_root)
        self._data = load_records(self.facts, e=e, root=params.data_root)
        self._records = {record["id"]: record for record in self._data.records}
        # Prompts are cut before any chat template, which the tokenizer may lack.
        self._tokens = request_tokens(self.form, {**metadata, "apply_chat_template": False})
        limit = params.max_prompt_tokens
        if isinstance(limit, str):
            limit = default_limit(find_window(self.form, metadata, self._tokens))
        self.limit = limit
        self._sizes: dict[str, tuple[int, int]] = {}
        fields["metadata"] = {
            **metadata,
            **params.plain(),
            # Results show what ran.
            "max_prompt_tokens": limit,
            "protocol": self._prompts.protocol,
            "prompt_hash": f"prompt:{self._prompts.sha256[:16]}",
            "data_hash": self._data.name,
        }
        fields["repeats"] = FAMILY.repeats(params)
        super().__init__(config=fields)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: object) -> None:
        """Make the documents: lm-eval calls this where a task would load its data."""
        rows = [self._document(record) for record in self._data.records]
        self.dataset = {"test": datasets.Dataset.from_list(rows, split=datasets.Split.TEST)}

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

    def build_all_requests(self, *, cache_requests: bool = False, **kwargs: Any) -> None:  # noqa: ANN401
        """Build the requests, and say in the results how many prompts were cut.

        lm-eval's cache is not used: its key knows neither the records nor the cut.
        """
        self._sizes.clear()
        super().build_all_requests(**{**kwargs, "rewrite_requests_cache": False})
        cut = sum(tokens > self.limit for tokens, _ in self._sizes.values())
        said = f"middle, over {self.limit:,} tokens: {cut:,} of {len(self._sizes):,} cut"
        self.set_config("metadata", {**self.config.metadata, "truncation": said})

    def fewshot_context(self, doc: Mapping[str, Any], num_fewshot: int, **wording: Any) -> Any:  # noqa: ANN401
        """What is sent for a document: in the chat template that is asked for, unless LongBench has none."""
        if not self.facts.chat:
            wording |= {"apply_chat_template": False, "chat_template": None}
        return super().fewshot_context(doc, num_fewshot, **wording)

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: object = None) -> str:
        """A document's prompt, cut, before any chat template."""
        cut = self.prompt_of(doc)
        self._sizes[doc["id"]] = (cut.tokens, cut.kept)
        return cut.text

    def prompt_of(self, doc: Mapping[str, Any]) -> Cut:
        """A document's prompt with its length before and after the cut."""
        return middle_cut(self._tokens, self._prompts.fill(self._records[doc["id"]]), self.limit)

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """Score a document, and leave in it how long its prompt was: after it was hashed for pairing."""
        scores = super().process_results(doc, results)
        if isinstance(doc, MutableMapping) and doc["id"] in self._sizes:
            doc["prompt_tokens"], doc["prompt_tokens_kept"] = self._sizes[doc["id"]]
        return scores
