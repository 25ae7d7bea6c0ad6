"""The needle family, as the rest of the package and the harness know it."""

from collections.abc import Mapping
from typing import Any, cast

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._parameters import Parameter
from nsa_tasks.family import FamilyCommand, Params, Size, TaskFamily
from nsa_tasks.needle.parameters import ANSWER_TOKENS, NeedleParams, parameters


class NeedleFamily(TaskFamily):
    """Needle in a haystack: single, multi-key, multi-value and multi-query."""

    name = "needle"
    title = "Needle in a haystack"
    command = FamilyCommand(
        summary="Draw a needle heatmap: hide a fact in texts of several lengths, at several depths, and ask "
        "for it.",
        task="needle_single",
        options={
            "lengths": "512,1k,2k",
            "depths": "11",
            "samples": "4",
            "haystack": None,
            "needle": None,
            "seed": None,
        },
        examples=(
            "nsa-eval needle --model zoo:twin-full-64k --model zoo:twin-nsa-64k --lengths 1k,4k --depths 5",
            "nsa-eval needle --model ./ckpt --lengths 4k,64k --depths 0,50,100 --haystack noise "
            "-o runs/noise",
            "nsa-eval needle --model ./ckpt --task needle_multikey --lengths 8k --dry-run",
            "nsa-eval needle --model zoo:twin-nsa-64k --sweep nsa_select_count=8 --lengths 4k --looks",
        ),
    )

    def parameters(self, task: str) -> tuple[Parameter, ...]:
        """List what a task takes."""
        return parameters(task)

    def check(self, task: str, values: Mapping[str, Any]) -> NeedleParams:
        """Check needle and haystack together, and turn an automatic reply budget into tokens."""
        if values["needle"] == "sentence":
            if not task.startswith("needle_single"):
                raise TaskParameterError(
                    f"{task}: needle = 'sentence': only needle_single hides a sentence; "
                    "take number, uuid or word."
                )
            if values["haystack"] == "needles":
                raise TaskParameterError(
                    f"{task}: needle = 'sentence' has no distractors, so haystack = 'needles' "
                    "does not go with it; take another haystack."
                )
        if values["haystack"].startswith("text:"):
            from nsa_tasks.haystack import text_files  # numpy: not needed to list tasks

            text_files(values["haystack"].removeprefix("text:"))  # a wrong path is told before a model loads
        new_tokens = values["new_tokens"]
        if new_tokens == "auto":
            answers = values.get("num_values", 1) * values.get("num_queries", 1)
            new_tokens = ANSWER_TOKENS[values["needle"]] * answers
        lists = {name: tuple(values[name]) for name in ("lengths", "depths")}
        return NeedleParams(task=task, **{**values, **lists, "new_tokens": new_tokens})

    def size(self, params: Params) -> Size:
        """Count samples, and the tokens that they take at most (each request fills its length)."""
        own = cast("NeedleParams", params)
        cells = len(own.depths) * own.samples
        return Size(len(own.lengths) * cells, sum(own.lengths) * cells)

    def evidence(self, document: Mapping[str, Any], prompt: str) -> tuple[tuple[int, int], ...]:
        """The values that are asked for, as their needles say them: a document lists those needles first."""
        found = []
        for needle, answer in zip(document["needles"], document["outputs"], strict=False):
            start, inside = prompt.find(needle), needle.rfind(answer)
            if start < 0 or inside < 0:
                return ()
            found.append((start + inside, start + inside + len(answer)))
        return tuple(found)

    def grid(self, params: Params) -> tuple[int, int, int]:
        """Lengths, depths, and the samples of a cell."""
        own = cast("NeedleParams", params)
        return len(own.lengths), len(own.depths), own.samples

    def max_request_tokens(self, params: Params) -> int:
        """The longest length."""
        return max(cast("NeedleParams", params).lengths)


FAMILY = NeedleFamily()
