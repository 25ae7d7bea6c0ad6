"""The lm-eval task class: a document is several requests, each bucket after all that stands before it."""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, cast

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from nsa_tasks import _kept
from nsa_tasks._tokens import RequestTokens, request_tokens
from nsa_tasks.family import Params
from nsa_tasks.ppl import FAMILY, sources
from nsa_tasks.ppl.documents import build
from nsa_tasks.ppl.parameters import PositionParams, bucket_ends
from nsa_tasks.ppl.scoring import metric_list


class PositionTask(ConfigurableTask):
    """Log-likelihoods of a document's buckets.

    The text is asked for as it is: no chat template and no system instruction is put around it, whatever the
    model is otherwise run with.
    """

    family = FAMILY

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read the parameters and cut the documents.

        Args:
            config: The YAML's keys, with the run's metadata merged in. `params` holds parameters that were
                resolved before (`task_spec` puts them there); without it the metadata is read.

        Raises:
            TaskParameterError: A parameter or tokenizer that cannot be used.
            TaskDataError: Data that cannot be had, or too few long documents.
        """
        fields = {key: value for key, value in config.items() if key not in ("class", "params")}
        self.form: str = fields["dataset_kwargs"]["form"]
        given = config.get("params")
        params = (
            given if isinstance(given, Params) else self.family.from_metadata(self.form, fields["metadata"])
        )
        self.params = cast("PositionParams", params)
        self.ends = bucket_ends(self.params, fields["metadata"])
        self._data = sources.load(self.params)
        scheme = "text_hash" if self.params.source.startswith("text:") else "data_hash"
        # Which data it was is said by its hash: where it lay would make copies of it another data set.
        metadata = {**fields["metadata"], **self.params.plain(), "buckets": list(self.ends)}
        metadata.pop("data_root", None)
        fields["metadata"] = {**metadata, scheme: self._data.name}
        fields["metric_list"] = metric_list(self.ends)
        super().__init__(config=fields)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: object) -> None:
        """Cut the documents: lm-eval calls this where a task would load its data."""

        def cut(tokens: RequestTokens) -> list[dict[str, Any]]:
            built = build(self.params, self.ends, self._data, tokens)
            return [{**document.row, "pieces": document.pieces} for document in built]

        made_of = {"data": self._data.name, "ends": str(self.ends)}
        tokens = request_tokens(self.form, self.config.metadata)
        rows = _kept.documents(
            self.params, made_of, tokens, cut, characters=lambda row: sum(map(len, row["pieces"]))
        )
        self._pieces: dict[str, tuple[str, ...]] = {row["id"]: row.pop("pieces") for row in rows}
        self.dataset = {"test": datasets.Dataset.from_list(rows, split=datasets.Split.TEST)}

    def fewshot_context(self, doc: Mapping[str, Any], *args: object, **kwargs: object) -> str:
        """Nothing is put around the text."""
        return ""

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: object = None) -> str:
        """What is given before the first scored token."""
        return self._pieces[doc["id"]][0]

    def doc_to_target(self, doc: Mapping[str, Any], doc_to_target: object = None) -> str:
        """The text itself is the target, and stands in the requests."""
        return ""

    def construct_requests(self, doc: dict[str, Any], ctx: object, **kwargs: Any) -> list[Instance]:  # noqa: ANN401
        """One request a bucket; each context holds the one before it."""
        kwargs.pop("apply_chat_template", None)
        kwargs.pop("chat_template", None)
        pieces = self._pieces[doc["id"]]
        return [
            Instance(request_type="loglikelihood", doc=doc, arguments=(context, piece), idx=number, **kwargs)
            for number, (context, piece) in enumerate(zip(accumulate(pieces), pieces[1:], strict=False))
        ]
