"""The RULER family, as the rest of the package and the harness know it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._parameters import Parameter
from nsa_tasks.data import DataSource
from nsa_tasks.family import Params, Size, TaskFamily
from nsa_tasks.ruler.parameters import RulerParams, parameters
from nsa_tasks.ruler.settings import TASKS, Cwe, Niah, Qa
from nsa_tasks.ruler.sources import ENGLISH, ESSAYS, SOURCES, is_official_text


class RulerFamily(TaskFamily):
    """RULER's 13 tasks at any length."""

    name = "ruler"
    title = "RULER"
    effective_score = 0.856

    def parameters(self, task: str) -> tuple[Parameter, ...]:
        """List what a task takes."""
        return parameters(task)

    def check(self, task: str, values: Mapping[str, Any]) -> RulerParams:
        """Check protocol and essay together, and that each length has room for a reply."""
        lengths = tuple(values["lengths"])
        new_tokens = TASKS[task].new_tokens
        if min(lengths) <= new_tokens:
            raise TaskParameterError(
                f"{task}: length {min(lengths)} has no room for more than the reply's {new_tokens} tokens; "
                "use longer lengths."
            )
        made = {**values, "lengths": lengths}
        if "essay" in values:
            made["essay"] = _essay(task, values["essay"], official=values["protocol"] == "official")
        return RulerParams(task=task, **made)

    def size(self, params: Params) -> Size:
        """Count samples, and the tokens that they take at most (each request fills its length)."""
        own = cast("RulerParams", params)
        return Size(len(own.lengths) * own.samples, sum(own.lengths) * own.samples)

    def reply_tokens(self, params: Params) -> int:
        """As the task's definition has it."""
        return TASKS[params.task].new_tokens

    def data_sources(self, params: Params | None = None) -> tuple[DataSource, ...]:
        """Essays, questions and the longer list of words, where the parameters ask for them."""
        if params is None:
            return (ESSAYS, *SOURCES.values(), ENGLISH)
        own = cast("RulerParams", params)
        found = [ESSAYS] if own.essay == "official" else []
        if isinstance(own.setting, Qa):
            found.append(SOURCES[own.setting.dataset])
        if isinstance(own.setting, Cwe) and own.official:
            found.append(ENGLISH)
        return tuple(found)

    def evidence(self, document: Mapping[str, Any], prompt: str) -> tuple[tuple[int, int], ...]:
        """The values of the needle tasks, each where one needle alone says it; the others copy nothing."""
        if not isinstance(TASKS.get(str(document["id"]).partition(":")[0]), Niah):
            return ()
        from nsa_tasks.ruler import wording  # parses lm-eval's files

        before, after = wording.needle().partition("{key}")[2].split("{value}")
        found = []
        for answer in document["outputs"]:
            said = f"{before}{answer}{after}"
            if prompt.count(said) != 1:
                return ()
            start = prompt.index(said) + len(before)
            found.append((start, start + len(answer)))
        return tuple(found)

    def grid(self, params: Params) -> tuple[int, int]:
        """Lengths, and the samples of each."""
        own = cast("RulerParams", params)
        return len(own.lengths), own.samples

    def max_request_tokens(self, params: Params) -> int:
        """The longest length."""
        return max(cast("RulerParams", params).lengths)


def _essay(task: str, essay: str, *, official: bool) -> str:
    if essay == "auto":
        return "official" if official else "generated"
    if essay.startswith("text:"):
        from nsa_tasks.haystack import text_files  # numpy: not needed to list tasks

        path = essay.removeprefix("text:")
        if not is_official_text(Path(path)):
            text_files(path)  # a wrong path is told before a model loads
        elif not Path(path).expanduser().is_file():
            raise TaskParameterError(f"{task}: essay {essay}: no such file.")
        elif official:
            return essay
    if official and essay != "official":
        raise TaskParameterError(
            f"{task}: essay = {essay!r} is not the official text, so protocol = official does not "
            "go with it: use protocol: offline, or give PaulGrahamEssays.json (essay: text:PATH, or "
            "essay: official with the file under data_root)."
        )
    return essay


FAMILY = RulerFamily()
