"""The lm-eval class of tasks whose documents are built to a request's length."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import datasets
from lm_eval.api.task import ConfigurableTask

from nsa_tasks import _kept
from nsa_tasks._errors import TaskParameterError
from nsa_tasks._tokens import ChatTemplate, RequestTokens, request_tokens
from nsa_tasks.family import Params, TaskFamily
from nsa_tasks.sampling import EveryReply


class SizedTask(EveryReply, ConfigurableTask):
    """A YAML task whose requests never exceed their length, however lm-eval is called.

    Plain `ConfigurableTask` reads `generation_kwargs` from the YAML alone and learns of a chat template only
    after the documents are made. Here the reply budget follows the parameters, and the documents are made
    again if the requests turn out to be worded differently from what they were sized for (a chat template or
    a system instruction given to lm-eval's own command line).

    The YAML names the task under `dataset_kwargs: {form: NAME}`, since `task` may be an alias. Documents have
    `input`, `gen_prefix` and what the family's `document_identity` reads.

    lm-eval writes a document beside the requests made of it, so a prompt would stand twice in every line of
    its samples. `input` is therefore kept here, and the documents have `input_sha256` in its place: a
    document's hash still says which prompt it was.
    """

    family: ClassVar[TaskFamily]

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read the parameters and build the documents.

        Args:
            config: The YAML's keys, with the run's metadata merged in. `params` holds parameters that were
                resolved before (`task_spec` puts them there); without it the metadata is read.

        Raises:
            TaskParameterError: A parameter, length or tokenizer that cannot be used.
        """
        fields = {key: value for key, value in config.items() if key not in ("class", "params")}
        self.form: str = fields["dataset_kwargs"]["form"]
        given = config.get("params")
        self.params: Params = (
            given if isinstance(given, Params) else self.family.from_metadata(self.form, fields["metadata"])
        )
        # Results show what ran, not what was written; of local files also which content it was.
        fields["metadata"] = {**fields["metadata"], **self.params.plain(), **self.content_hashes()}
        if "generation_kwargs" in fields:  # others score an answer that stands in the reply's place
            fields["generation_kwargs"] = {
                **fields["generation_kwargs"],
                "max_gen_toks": self.reply_budget(),
            }
        fields["repeats"] = self.family.repeats(self.params)
        super().__init__(config=fields)

    @abstractmethod
    def reply_budget(self) -> int:
        """New tokens inside each request's length."""

    @abstractmethod
    def build(self, tokens: RequestTokens) -> list[dict[str, Any]]:
        """Build every document, by the parameters, `content_hashes` and the tokenizer alone.

        Args:
            tokens: Counts a request's tokens, worded as it will be sent.
        """

    def content_hashes(self) -> dict[str, str]:
        """Hashes of local files for the results: `SCHEME_hash` for each parameter with a scheme in use."""
        return {}

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: object) -> None:
        """Build the documents: lm-eval calls this where a task would load its data."""
        self._make(request_tokens(self.form, self.config.metadata))

    def build_all_requests(
        self,
        *,
        apply_chat_template: bool = False,
        chat_template: ChatTemplate | None = None,
        system_instruction: str | None = None,
        cache_requests: bool = False,
        rewrite_requests_cache: bool = False,
        **kwargs: object,
    ) -> None:
        """Build the requests, after making sure that the documents were sized for them.

        lm-eval's request cache is not used: its key knows the task's name and not its lengths.

        Raises:
            TaskParameterError: `gen_kwargs` asked for more new tokens than the lengths leave room for.
        """
        asked = int((self.config.generation_kwargs or {}).get("max_gen_toks", 0))
        room = self.reply_budget()
        if asked > room:
            raise TaskParameterError(
                f"{self.form}: max_gen_toks = {asked} in gen_kwargs exceeds the {room} "
                f"tokens inside each length; set new_tokens = {asked} in the task's parameters instead."
            )
        wording = {
            "apply_chat_template": apply_chat_template,
            "chat_template": chat_template,
            "system_instruction": system_instruction,
        }
        doc = self.dataset["test"][0]
        sent = self.fewshot_context(doc, num_fewshot=0, gen_prefix=doc["gen_prefix"], **wording)
        if sent != self._tokens.render(self.doc_to_text(doc), doc["gen_prefix"]):
            template = chat_template if apply_chat_template else None
            tokens = replace(self._tokens, chat_template=template, template_source=None)
            self._make(replace(tokens, system_instruction=system_instruction))
            self.task_docs = self.eval_docs
        super().build_all_requests(**wording, **kwargs)

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: object = None) -> str:
        """The prompt of a document, before any chat template."""
        return self._inputs[self.family.document_identity(doc)]

    def explain(self, doc: Mapping[str, Any], prompt: str, reply: str) -> str:
        """What a reply that isn't fully right holds instead, in a few words; nothing where it is right."""
        return ""

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """Score a document, and leave in it what its replies hold instead of the answer.

        lm-eval averages whatever stands among the metrics: text about a reply has no place but the document.
        This one was read from the data set for its sample alone; its hash is that of the request's own copy.
        """
        scores = super().process_results(doc, results)
        replies = results[0] if results and isinstance(results[0], list) else results
        reasons = [self.explain(doc, self.doc_to_text(doc), str(reply)) for reply in replies]
        if any(reasons) and isinstance(doc, MutableMapping):
            doc["reasons"] = reasons
        return scores

    def _make(self, tokens: RequestTokens) -> None:
        rows = _kept.documents(self.params, self.content_hashes(), tokens, self.build)
        inputs: dict[str, str] = {}
        for row in rows:
            name = self.family.document_identity(row)
            if name in inputs:
                raise ValueError(f"{self.form}: two documents are known as {name!r}")
            inputs[name] = row.pop("input")
            row["input_sha256"] = hashlib.sha256(inputs[name].encode()).hexdigest()
        self._tokens, self._inputs = tokens, inputs
        self.dataset = {"test": datasets.Dataset.from_list(rows, split=datasets.Split.TEST)}
