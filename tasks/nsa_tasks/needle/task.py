"""The lm-eval task class of the needle YAMLs."""

from collections.abc import Mapping
from typing import Any, cast

from nsa_tasks._tokens import RequestTokens
from nsa_tasks.needle import FAMILY, build
from nsa_tasks.needle.parameters import NeedleParams
from nsa_tasks.needle.prompts import values_in
from nsa_tasks.needle.scoring import describe_failure
from nsa_tasks.sized_task import SizedTask


class NeedleTask(SizedTask):
    """A needle task: its documents are built, scored by what their replies contain."""

    family = FAMILY

    @property
    def needle(self) -> NeedleParams:
        """The task's parameters."""
        return cast("NeedleParams", self.params)

    def reply_budget(self) -> int:
        """New tokens inside each request's length."""
        return self.needle.new_tokens

    def build(self, tokens: RequestTokens) -> list[dict[str, Any]]:
        """Build every document of the grid."""
        return build.documents(self.needle, tokens)

    def explain(self, doc: Mapping[str, Any], prompt: str, reply: str) -> str:
        """Tell another needle's value, nothing and something else apart."""
        answers = doc["outputs"]
        others = sorted(set(values_in(prompt)) - set(answers))
        return describe_failure(reply, answers, others, exact=self.form == "needle_single")

    def content_hashes(self) -> dict[str, str]:
        """Which text it was, wherever it lay."""
        name = build.open_haystack(self.needle).name
        return {"text_hash": name} if name.startswith("text:") else {}
