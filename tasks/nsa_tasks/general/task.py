"""lm-eval's own tasks, on local records where there are any."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from nsa_tasks._errors import TaskDataError
from nsa_tasks.data import looked_for
from nsa_tasks.general.records import local_rows, source_of


class LmEvalTask(ConfigurableTask):
    """A task of lm-eval's with its prompts and scorers; `class:` of a group's members names it.

    Rows come from files under the data root (`data_root` in the metadata, else NSA_EVAL_DATA), and from the
    hub where there are none. The results say whose protocol it is and which data.
    """

    protocol = "lm-eval"

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Load the data.

        Args:
            config: lm-eval's YAML with the group's settings over it.

        Raises:
            TaskDataError: Rows that can't be had, with the file that was looked for.
        """
        fields = {key: value for key, value in config.items() if key != "class"}
        given = dict(fields.get("metadata") or {})
        self._root = str(given.get("data_root") or "")
        fields["metadata"] = {**given, "protocol": self.protocol}
        self._examples_missing = ""
        super().__init__(config=fields)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: object) -> None:
        """Read the local files, or ask the hub.

        Raises:
            TaskDataError: Neither has the rows.
        """
        asked = self.config.test_split or self.config.validation_split
        benchmark, name = str(self.config.dataset_path), self.config.dataset_name
        found = local_rows(benchmark, asked, name, self._root)
        if found is None:
            self._from_hub(dataset_kwargs, benchmark, asked, name)
            self.config.metadata["data_hash"] = f"hub:{benchmark}"
            return
        if not found.records:
            raise TaskDataError(f"{found.files[0]}: no record of {name!r}, which {self.config.task} asks.")
        self.config.metadata["data_hash"] = found.name
        self.dataset = {asked: _dataset(found.records)}
        for split in {self.config.training_split, self.config.validation_split, self.fewshot_cfg.split}:
            if split is not None and split not in self.dataset:
                self._add(split, benchmark, name)

    def _add(self, split: str, benchmark: str, name: str | None) -> None:
        """Read a split that examples are taken from; without it there can be none."""
        found = local_rows(benchmark, split, name, self._root)
        if found is not None:
            self.dataset[split] = _dataset(found.records)
            self.config.metadata["examples_hash"] = found.name
            return
        source = source_of(benchmark, split, name)
        if source is not None:
            self._examples_missing = f"{looked_for(source, self._root or None)}. {source.how}"
        for key in ("training_split", "validation_split"):
            if getattr(self.config, key) == split:
                setattr(self.config, key, None)
        if self.fewshot_cfg.split == split:
            self.fewshot_cfg.split = None

    def _from_hub(self, kwargs: dict[str, Any] | None, benchmark: str, split: str, name: str | None) -> None:
        try:
            super().download(kwargs)
        except Exception as error:  # the hub's libraries raise dozens of kinds, and none is a bug of ours
            source = source_of(benchmark, split, name)
            if source is None:
                raise
            reason = " ".join(str(error).split())[:200]
            raise TaskDataError(
                f"{looked_for(source, self._root or None)}, and the hub's {benchmark} can't be had "
                f"({type(error).__name__}: {reason}). {source.how}"
            ) from None

    def fewshot_docs(self) -> Any:  # noqa: ANN401  (lm-eval's)
        """List what examples are drawn from: nothing, where their file isn't here.

        lm-eval would warn of it and take the questions themselves, though no example may be asked for at all.
        """
        return [] if self._examples_missing else super().fewshot_docs()

    def build_all_requests(self, **kwargs: Any) -> None:  # noqa: ANN401  (lm-eval's)
        """Build the requests.

        Raises:
            TaskDataError: Solved examples were asked for, and the file that they stand in isn't here.
        """
        if self.config.num_fewshot and self._examples_missing:
            raise TaskDataError(
                f"{self.config.task}: no examples to show: {self._examples_missing} Or set num_fewshot: 0."
            )
        super().build_all_requests(**kwargs)


class DropTask(LmEvalTask):
    """DROP with examples that show answers, and a stop that cuts no number.

    lm-eval's shows an example's answer as the names of its fields, and ends a reply at the first full stop
    (EleutherAI/lm-evaluation-harness#2137). The group's YAML has the target and the stop; a full stop at the
    end of a reply is cut here, since lm-eval's scorer takes "12.5." for 125.
    """

    protocol = "lm-eval, examples and stop mended"

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """Score by lm-eval's own scorer."""
        return dict(super().process_results(doc, [str(reply).strip().rstrip(".") for reply in results]))


def _dataset(records: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(records)
