"""A method whose budget is a share of each prompt: the same density at every length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from nsa_models.methods._base import Budgeted, Method, MethodError
from nsa_models.methods._registry import make_method, methods

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
# Budgets are whole pages of Quest's, as Sparse Frontier rounds them; prompts of about one length then share a
# budget, and so a batch.
_STEP = 16
# A budget with which any method's other parameters can be checked.
_AMPLE = 2**20


@dataclass(frozen=True, kw_only=True)
class MethodShare:
    """A method at a budget of so many percent of the tokens of each prompt (arXiv 2504.17768's density).

    The budget is rounded down to whole multiples of 16 tokens, 16 at least, and stays what it is while a
    reply grows.
    """

    name: str
    percent: float
    """Of the prompt's tokens (of a scored text, all of its)."""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Further fields of the method."""

    def budget(self, tokens: int) -> int:
        """KV tokens at a prompt of so many."""
        return max(_STEP, int(tokens * self.percent / 100 + 1e-9) // _STEP * _STEP)

    def at(self, budget: int) -> Method:
        """The method at one budget.

        Raises:
            MethodError: The method can't have one so small.
        """
        try:
            return make_method(self.name, budget, **self.options)
        except MethodError as error:
            raise MethodError(
                f"{error} ({self.percent:g} % of a prompt, in steps of {_STEP}): ask for a larger share, or "
                "for longer prompts"
            ) from None

    @property
    def declared(self) -> Method:
        """The method with its declarations, at an ample budget."""
        return self.at(_AMPLE)

    @property
    def label(self) -> str:
        """`quest@10%`, with every parameter that isn't at its default."""
        made = self.declared
        return made.label.replace(f"@{_AMPLE}", f"@{self.percent:g}%", 1)

    def describe(self) -> dict[str, Any]:
        """Every parameter and declaration as plain JSON: what a stored response depends on."""
        found = self.declared.describe()
        share = {"budget": f"{self.percent:g}%", "budget_step": _STEP}
        return {**found, "label": self.label, "parameters": {**found["parameters"], **share}}


def is_share(budget: object) -> bool:
    """Whether a budget is written as a share: "10%"."""
    return isinstance(budget, str) and _PERCENT.fullmatch(budget.strip()) is not None


def method_at(
    name: str,
    budget: int | str | None = None,
    **options: Any,  # noqa: ANN401
) -> Method | MethodShare:
    """A method at a budget in tokens, or at one that is a share of each prompt; or one without a budget.

    Args:
        name: One of `methods()`.
        budget: KV tokens, as `make_method` takes them, or a share such as "10%"; None for one without.
        options: Further fields.

    Raises:
        MethodError: What `make_method` refuses, or a share outside of 0 to 100 %.
    """
    if not is_share(budget) or not (name in methods() and issubclass(methods()[name], Budgeted)):
        return make_method(name, budget, **options)
    match = _PERCENT.fullmatch(str(budget).strip())
    assert match is not None
    percent = float(match[1])
    if not 0 < percent <= 100:
        raise MethodError(f"{name}: budget must be above 0 and at most 100 % of the prompt, got {budget!r}")
    share = MethodShare(name=name, percent=percent, options=MappingProxyType(dict(options)))
    share.at(_AMPLE)
    return share
