"""A method whose budget is a share of each prompt: the same density at every length."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from nsa_models.methods._base import Budgeted, Method, MethodError
from nsa_models.methods._registry import make_method, methods, read_field

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
# Budgets are whole pages of Quest's, as Sparse Frontier rounds them; prompts of about one length then share a
# budget, and so a batch.
_STEP = 16
# Steps of a budget with which any method's other parameters can be checked.
_AMPLE = 2**16


@dataclass(frozen=True, kw_only=True)
class MethodShare:
    """A method at a budget of so many percent of the tokens of each prompt (arXiv 2504.17768's density).

    The budget is rounded down to whole steps, one at least, and stays what it is while a reply grows.
    """

    name: str
    percent: float
    """Of the prompt's tokens (of a scored text, all of its)."""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Further fields of the method."""

    @property
    def step(self) -> int:
        """16 tokens, or what is whole both in those and in the method's blocks."""
        chosen = methods()[self.name]
        if not (issubclass(chosen, Budgeted) and chosen.whole):
            return _STEP
        field = chosen.whole
        size = getattr(chosen, field) if field not in self.options else self.options[field]
        if isinstance(size, str):
            size = read_field(self.name, field, size, int)
        return math.lcm(_STEP, size) if type(size) is int and size > 0 else _STEP  # else refused when made

    @property
    def declared(self) -> Method:
        """The method with its declarations, at a budget that is large enough for any other parameters.

        Raises:
            MethodError: Those can't be.
        """
        return make_method(self.name, _AMPLE * self.step, **self.options)

    def budget(self, tokens: int) -> int:
        """KV tokens at a prompt of so many."""
        return max(1, int(tokens * self.percent / 100 + 1e-9) // self.step) * self.step

    def at(self, budget: int) -> Method:
        """The method at one budget.

        Raises:
            MethodError: The method can't have one so small.
        """
        try:
            return make_method(self.name, budget, **self.options)
        except MethodError as error:
            raise MethodError(
                f"{error} ({self.percent:g} % of a prompt, in steps of {self.step}): ask for a larger "
                "share, longer prompts, or other options of the method"
            ) from None

    @property
    def label(self) -> str:
        """`quest@10%`, with every parameter that isn't at its default."""
        return self.declared.label.replace(f"@{_AMPLE * self.step}", f"@{self.percent:g}%", 1)

    def describe(self) -> dict[str, Any]:
        """Every parameter and declaration as plain JSON: what a stored response depends on."""
        found = self.declared.describe()
        share = {"budget": f"{self.percent:g}%", "budget_step": self.step}
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
        MethodError: What `make_method` refuses, a share outside of 0 to 100 %, or one of a budget that isn't
            of the context.
    """
    chosen = methods().get(name)
    if not is_share(budget) or chosen is None or not issubclass(chosen, Budgeted):
        return make_method(name, budget, **options)
    if not chosen.of_context:
        raise MethodError(
            f"{name}: budget can't be a share of the prompt, got {budget!r}: it is {chosen.budget_unit}; "
            "write a whole number"
        )
    match = _PERCENT.fullmatch(str(budget).strip())
    assert match is not None
    percent = float(match[1])
    if not 0 < percent <= 100:
        raise MethodError(f"{name}: budget must be above 0 and at most 100 % of the prompt, got {budget!r}")
    share = MethodShare(name=name, percent=percent, options=MappingProxyType(dict(options)))
    _ = share.declared  # refuses what no budget makes good
    return share
