"""The lm-eval task class of the RULER YAMLs."""

from collections.abc import Mapping
from typing import Any, cast

from nsa_tasks._tokens import RequestTokens
from nsa_tasks.ruler import FAMILY, build
from nsa_tasks.ruler.parameters import RulerParams
from nsa_tasks.ruler.scoring import describe_failure
from nsa_tasks.ruler.settings import Qa
from nsa_tasks.sized_task import SizedTask


class RulerTask(SizedTask):
    """A RULER task: its documents are drawn, scored by the answers that their replies hold."""

    family = FAMILY

    @property
    def ruler(self) -> RulerParams:
        """The task's parameters."""
        return cast("RulerParams", self.params)

    def reply_budget(self) -> int:
        """New tokens inside each request's length."""
        return self.ruler.setting.new_tokens

    def build(self, tokens: RequestTokens) -> list[dict[str, Any]]:
        """Build every document."""
        return build.documents(self.ruler, tokens)

    def explain(self, doc: Mapping[str, Any], prompt: str, reply: str) -> str:
        """Tell a part of the answers, something else and nothing apart."""
        return describe_failure(reply, doc["outputs"], any_counts=isinstance(self.ruler.setting, Qa))

    def content_hashes(self) -> dict[str, str]:
        """Which text and records it was, wherever they lay, and the protocol with what deviates from it."""
        return {**build.content_hashes(self.ruler), "protocol": self.ruler.label}
