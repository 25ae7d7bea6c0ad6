"""The heading of a report that was given none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nsa_eval._words import counted
from nsa_tasks import families

if TYPE_CHECKING:
    from nsa_eval.material import Material

_LONGEST = 80
"""Characters that a line of the page's heading holds."""
_MOST_NAMES = 3


def default_title(material: Material) -> str:
    """A run's name; where that is a hash, as of a run without a config, its models and tasks.

    Names are given as far as they fit into a line, else numbers: `nsa and dense on needle_single`,
    `dense in 9 variants on 13 tasks`.
    """
    name = str(material.run_config.get("name") or material.first.directory.name)
    prefix, _, digest = name.rpartition("-")
    if prefix not in {"eval", *families()} or not re.fullmatch("[0-9a-f]{8}", digest):
        return name
    tops = [task for task, depth in material.outline if not depth]
    tasks = [*_listed(tops), counted(len(tops), "task")]
    titles = [f"{models} on {them}" for models in _models(material) for them in tasks]
    return next((title for title in titles if len(title) <= _LONGEST), titles[-1])


def _models(material: Material) -> Iterator[str]:
    """From all names to their number."""
    labels = list(material.models)
    yield from _listed(labels)
    checkpoints = [str(model["name"]) for model in material.run_config.get("models", ()) if "name" in model]
    if len(checkpoints) == 1 and len(labels) > 1:
        yield f"{checkpoints[0]} in {len(labels)} variants"
    yield counted(len(labels), "model")


def _listed(names: Sequence[str]) -> Iterator[str]:
    """`a`, `a and b`, `a, b and c`; nothing for more."""
    if 0 < len(names) <= _MOST_NAMES:
        yield " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
