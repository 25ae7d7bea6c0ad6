"""HumanEval and MBPP: lm-eval's prompts and stops, and a scorer that works offline.

lm-eval's own tasks fetch a metric script from the hub as they are imported, and run a program then.
"""

import ast
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets
from lm_eval.api.task import ConfigurableTask

from nsa_tasks._errors import TaskDataError
from nsa_tasks.data import load_data
from nsa_tasks.general.family import FAMILY, GeneralParams
from nsa_tasks.general.records import CODE_SOURCES
from nsa_tasks.general.sandbox import passes
from nsa_tasks.sampling import EveryReply
from nsa_tasks.upstream import lm_eval_yaml, package_file, read_text

_HUMANEVAL = (
    "humaneval/humaneval.yaml",
    "dd448f236e88f9f61a00c3c5f6703216d21aae9c6ca64cdb63139acd39fdddc6",
)
_MBPP = ("mbpp/mbpp.yaml", "e527105e271ab1c57d692dabbf35306e61d2ffdefa5c08785baa6c493ee2a078")
_MBPP_EXAMPLES = ("mbpp/utils.py", "eecfcc264a63801d4ac478fac80b0f18c3faf16a107baf641a4fd498e81de7df")
_KEPT = ("doc_to_text", "doc_to_target", "target_delimiter", "num_fewshot", "output_type")
"""Keys of lm-eval's YAMLs that decide the prompt."""


class CodeTask(EveryReply, ConfigurableTask):
    """A set of problems whose replies are programs: a reply passes if its tests do."""

    upstream: ClassVar[tuple[str, str]]
    """lm-eval's YAML, and its hash."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read lm-eval's prompt and the problems.

        Args:
            config: The YAML's keys, with the run's metadata merged in.

        Raises:
            TaskDataError: Problems that can't be had, or another version of lm-eval's file.
        """
        fields = {key: value for key, value in config.items() if key not in ("class", "params")}
        self.form: str = fields["dataset_kwargs"]["form"]
        given = config.get("params")
        self.params = (
            given if isinstance(given, GeneralParams) else FAMILY.from_metadata(self.form, fields["metadata"])
        )
        theirs = lm_eval_yaml(self.upstream[0], sha256=self.upstream[1])
        fields = {**{key: theirs[key] for key in _KEPT if key in theirs}, **fields}
        # Their stops, this project's budget (lm-eval's default of 256 tokens would cut solutions of MBPP).
        fields["generation_kwargs"] = {**theirs["generation_kwargs"], **fields["generation_kwargs"]}
        fields["metadata"] = {**fields["metadata"], **self.params.plain()}
        # With a function of the task's own, lm-eval doesn't search the network for a metric of this name.
        fields["process_results"] = type(self).process_results
        super().__init__(config={**fields, **self.examples()})

    def examples(self) -> dict[str, Any]:
        """Keys that give the task solved examples."""
        return {}

    def program(self, doc: Mapping[str, Any], reply: str) -> str:
        """Put a reply and its tests together."""
        raise NotImplementedError

    def wanted(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is one of the test part."""
        return True

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: object) -> None:
        """Load the problems: lm-eval calls this where a task would load its data."""
        assert isinstance(self.params, GeneralParams)
        data = load_data(CODE_SOURCES[self.form], self.params.data_root or None)
        rows = [record for record in data.records if self.wanted(record)]
        if not rows:
            raise TaskDataError(f"{data.name}: none of its {len(data.records)} records is of the test part.")
        self.config.metadata["data_hash"] = data.name
        self.dataset = {"test": datasets.Dataset.from_list(rows, split=datasets.Split.TEST)}

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """Score a problem: the share of its replies that pass, pass@1."""
        replies = results[0] if results and isinstance(results[0], list) else results
        return {"pass@1": sum(passes(self.program(doc, str(reply))) for reply in replies) / len(replies)}


class HumanEvalTask(CodeTask):
    """HumanEval: the body of a function whose head and description are the prompt."""

    upstream = _HUMANEVAL

    def program(self, doc: Mapping[str, Any], reply: str) -> str:
        """The prompt goes on in the reply, then the tests call the function."""
        return f"{doc['prompt']}{reply}\n{doc['test']}\ncheck({doc['entry_point']})\n"


class MbppTask(CodeTask):
    """MBPP: a function from a sentence and three tests, after three examples."""

    upstream = _MBPP

    def examples(self) -> dict[str, Any]:
        """lm-eval's three, read from its file without importing it."""
        path = package_file("lm_eval", f"tasks/{_MBPP_EXAMPLES[0]}")
        found = examples_in(read_text(path, sha256=_MBPP_EXAMPLES[1]))
        return {"fewshot_config": {"sampler": "first_n", "samples": found}}

    def wanted(self, record: Mapping[str, Any]) -> bool:
        """Numbers 11 to 510; a file may hold all 974, a hub's split has these alone."""
        return 11 <= int(record["task_id"]) <= 510

    def program(self, doc: Mapping[str, Any], reply: str) -> str:
        """The reply, then its three tests."""
        return "\n".join([reply, *doc["test_list"][:3], ""])


def examples_in(text: str) -> list[dict[str, Any]]:
    """Read what `list_fewshot_samples` of a file returns, where that is written out."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples":
            [returned] = [part for part in ast.walk(node) if isinstance(part, ast.Return)]
            assert returned.value is not None
            found: list[dict[str, Any]] = ast.literal_eval(returned.value)
            return found
    raise TaskDataError("lm-eval's file has no list_fewshot_samples")
