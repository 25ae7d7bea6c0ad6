"""The lm-eval task class of the reasoning YAMLs."""

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
from lm_eval.api.task import ConfigurableTask

from nsa_tasks._errors import TaskDataError, TaskParameterError
from nsa_tasks.data import load_data
from nsa_tasks.reasoning import FAMILY, grading
from nsa_tasks.reasoning.parameters import ReasoningParams
from nsa_tasks.reasoning.prompts import template_hash, wording
from nsa_tasks.reasoning.records import SOURCES, documents
from nsa_tasks.replies import RIGHT, majority_at_k, pass_at_k
from nsa_tasks.sampling import EveryReply


class ReasoningTask(EveryReply, ConfigurableTask):
    """A set of problems with one answer each, asked n times.

    In its samples, `doc.reply_votes` says of each reply which answer it gives (`nsa_tasks.replies`),
    `doc.reply_answers` that answer as it stands there, and `doc.reasons` why there is none.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read the parameters and the problems.

        Args:
            config: The YAML's keys, with the run's metadata merged in. `params` holds parameters that were
                resolved before; without it the metadata is read.

        Raises:
            TaskParameterError: A parameter that can't be used.
            TaskDataError: Problems that can't be had, an answer that can't be compared, no math-verify.
        """
        fields = {key: value for key, value in config.items() if key not in ("class", "params")}
        self.form: str = fields["dataset_kwargs"]["form"]
        given, metadata = config.get("params"), fields["metadata"]
        resolved = given if isinstance(given, ReasoningParams) else FAMILY.from_metadata(self.form, metadata)
        self.params = cast("ReasoningParams", resolved)
        self._wording = wording(self.form, self.params.prompt)
        self._data = load_data(SOURCES[self.form], self.params.data_root or None)
        scheme, _, path = self.params.prompt.partition(":")
        hashes = {"file_hash": f"file:{template_hash(Path(path).expanduser())}"} if scheme == "file" else {}
        fields["metadata"] = {
            **metadata,
            **self.params.plain(),
            **hashes,
            "data_hash": self._data.name,
            "protocol": f"{metadata['protocol']}: {self.params.label}",
        }
        fields["generation_kwargs"] = self._generation()
        fields["repeats"] = self.params.replies
        fields["metric_list"] = [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in self._metrics()
        ]
        # With a function of the task's own, lm-eval doesn't search the network for metrics of these names.
        fields["process_results"] = type(self).process_results
        super().__init__(config=fields)

    def _generation(self) -> dict[str, Any]:
        """The only stop is the model's own: any string could be part of a chain of thought."""
        settings: dict[str, Any] = {"until": [], "max_gen_toks": self.params.budget}
        if self.params.temperature == 0:
            return {**settings, "do_sample": False}
        return {
            **settings,
            "do_sample": True,
            "temperature": self.params.temperature,
            "top_p": self.params.top_p,
        }

    def _metrics(self) -> list[str]:
        names = (f"{kind}@{k}" for kind in ("pass", "maj") for k in self.params.k)
        return [f"avg@{self.params.replies}", *names]

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: object) -> None:
        """Make the documents: lm-eval calls this where a task would load its data.

        Raises:
            TaskDataError: A right answer that doesn't pass against itself, by its record.
        """
        rows = documents(self.form, self._data)
        if failing := grading.failing_golds(row["answer"] for row in rows):
            place = self._data.places[[row["answer"] for row in rows].index(failing[0])]
            raise TaskDataError(
                f"{place}: its answer {failing[0]!r} isn't recognised in a reply that boxes it, so no reply "
                f"could be right ({len(failing)} of {len(rows)} answers)."
            )
        self._golds = {row["id"]: grading.read_gold(row["answer"]) for row in rows}
        self.dataset = {"test": datasets.Dataset.from_list(rows, split=datasets.Split.TEST)}

    def build_all_requests(self, **kwargs: object) -> None:
        """Build the requests, after making sure that nothing else than the parameters says how to ask.

        Raises:
            TaskParameterError: `repeats` or `gen_kwargs` were given; the parameters are named.
        """
        if int(self.config.repeats) != self.params.replies:
            raise TaskParameterError(
                f"{self.form}: repeats = {self.config.repeats}: set replies = {self.config.repeats} in the "
                "task's parameters instead."
            )
        asked, own = dict(self.config.generation_kwargs), self._generation()
        other = sorted(key for key in {*asked, *own} if asked.get(key) != own.get(key))
        if other:
            raise TaskParameterError(
                f"{self.form}: gen_kwargs change {', '.join(other)}: set budget, temperature and top_p in "
                "the task's parameters instead, which the score's label names."
            )
        super().build_all_requests(**kwargs)
        # Of problems whose prompt, chat template and all, leaves the model inside of thinking.
        self._opened = {
            instance.doc["id"] for instance in self.instances if grading.opens_thinking(str(instance.args[0]))
        }

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: object = None) -> str:
        """The prompt of a problem, before any chat template."""
        return self._wording(doc["problem"])

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """Score a problem by all its replies, and leave in it what they answer."""
        replies = results[0] if results and isinstance(results[0], list) else results
        opened = doc["id"] in self._opened
        answers = [grading.read_answer(str(reply), opened=opened) for reply in replies]
        votes = grading.votes(self._golds[doc["id"]], answers)
        if isinstance(doc, MutableMapping):
            doc["reply_votes"] = votes
            doc["reply_answers"] = [answer.text for answer in answers]
            if any(answer.why for answer in answers):
                doc["reasons"] = [answer.why for answer in answers]
        n, right = len(votes), votes.count(RIGHT)
        scores = {f"avg@{self.params.replies}": right / n}
        scores |= {f"pass@{k}": pass_at_k(n, right, k) for k in self.params.k}
        return scores | {f"maj@{k}": majority_at_k(votes, k) for k in self.params.k}
