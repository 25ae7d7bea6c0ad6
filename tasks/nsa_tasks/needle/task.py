"""The lm-eval task class of the needle YAMLs."""

from typing import Any, cast

from nsa_tasks._tokens import RequestTokens
from nsa_tasks.needle import FAMILY, build
from nsa_tasks.needle.parameters import NeedleParams
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

    def content_hashes(self) -> dict[str, str]:
        """Which text it was, wherever it lay."""
        name = build.open_haystack(self.needle).name
        return {"text_hash": name} if name.startswith("text:") else {}
