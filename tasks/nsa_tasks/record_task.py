"""The lm-eval class of tasks over records, with the long text kept out of the documents."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import datasets
from lm_eval.api.task import ConfigurableTask

from nsa_tasks._tokens import RequestTokens, request_tokens
from nsa_tasks.family import Params, TaskFamily
from nsa_tasks.sampling import EveryReply


@dataclass(frozen=True, slots=True)
class Documents:
    """What a task asks, and where it comes from."""

    rows: list[dict[str, Any]]
    """lm-eval's documents: all that scoring and a reader of the samples need, without the long text."""
    about: dict[str, Any] = field(default_factory=dict)
    """Facts for the results' metadata: `data_hash`, a protocol that the parameters made another."""


class RecordTask(EveryReply, ConfigurableTask):
    """A YAML task over records that its family reads or builds; the prompt is made by `prompt_of`.

    lm-eval writes a document beside the requests made of it: a context in both would double files of long
    texts. Rows therefore carry no context (a hash of it at most), and `prompt_of` puts the two together.

    The YAML names the task under `dataset_kwargs: {form: NAME}`, since `task` may be an alias.
    """

    family: ClassVar[TaskFamily]

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read the parameters, then the records.

        Args:
            config: The YAML's keys, with the run's metadata merged in. `params` holds parameters that were
                resolved before (`task_spec` puts them there); without it the metadata is read.

        Raises:
            TaskParameterError: A parameter or tokenizer that can't be used.
            TaskDataError: Records or a prompt file that can't be had.
        """
        fields = {key: value for key, value in config.items() if key not in ("class", "params")}
        self.form: str = fields["dataset_kwargs"]["form"]
        given = config.get("params")
        self.params: Params = (
            given if isinstance(given, Params) else self.family.from_metadata(self.form, fields["metadata"])
        )
        # Texts are counted and cut before any chat template: a tokenizer may have none.
        self.told: Mapping[str, Any] = fields["metadata"]
        counting = {**self.told, "apply_chat_template": False}
        self.tokens: RequestTokens = request_tokens(self.form, counting)
        documents = self.documents()
        self._rows = documents.rows
        # Results show what ran, not what was written.
        fields["metadata"] = {**fields["metadata"], **self.params.plain(), **documents.about}
        fields["generation_kwargs"] = {
            **fields["generation_kwargs"],
            "max_gen_toks": self.reply_budget(),
        }
        # A class that scores by itself says so: lm-eval would look for each metric's name on the hub.
        fields.setdefault("process_results", type(self).process_results)
        fields["repeats"] = self.family.repeats(self.params)
        super().__init__(config=fields)

    @abstractmethod
    def documents(self) -> Documents:
        """Read or build all documents.

        `self.params`, `self.tokens` and `self.told`, the metadata with the model's arguments, are there.
        """

    @abstractmethod
    def prompt_of(self, doc: Mapping[str, Any]) -> str:
        """The prompt of a document, before any chat template."""

    @abstractmethod
    def reply_budget(self) -> int:
        """New tokens of a reply."""

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: object) -> None:
        """Hand the documents over: lm-eval calls this where a task would load its data."""
        self.dataset = {"test": datasets.Dataset.from_list(self._rows, split=datasets.Split.TEST)}

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: object = None) -> str:
        """The prompt of a document, before any chat template."""
        return self.prompt_of(doc)

    def build_all_requests(
        self,
        *,
        cache_requests: bool = False,
        rewrite_requests_cache: bool = False,
        **kwargs: Any,  # noqa: ANN401  (lm-eval's arguments)
    ) -> None:
        """Build the requests; never from lm-eval's cache, whose key knows no parameters."""
        super().build_all_requests(**kwargs)
