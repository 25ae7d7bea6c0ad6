"""Requests as they travel: named by content, free of lm-eval's objects, ready for another process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.instance import Instance

from nsa_eval.engine._prompts import Origin, Truncation
from nsa_eval.store import RequestKind, Response, request_key

Emit = Callable[[Mapping[str, Response]], None]
"""Receives finished responses by key, a batch at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing to ask a model."""

    key: str
    """What its response is stored under."""
    kind: RequestKind
    arguments: tuple[Any, ...]
    """(context, continuation), (text,) or (prompt, generation settings), as lm-eval gives them."""
    origin: Origin
    seed: int
    """For sampling; the same whatever model answers, so that two models draw the same numbers."""
    truncation: Truncation | None = None
    """What to do with a prompt that is too long, where its task says so; None leaves it to the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What a run knows of its requests that lm-eval's instances don't say."""

    context: str = ""
    """All that responses depend on besides the request."""
    task_contexts: Mapping[str, str] = field(default_factory=dict)
    """The same for single tasks, by name."""
    truncations: Mapping[str, Truncation] = field(default_factory=dict)
    """Policies of single tasks for prompts that are too long, by name."""
    documents: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of tasks that are asked in part, by name: the number of each document that is asked, since lm-eval
    counts those alone."""
    seed: int | None = None
    """The run's seed of drawn replies."""


def name_requests(instances: Sequence[Instance], kind: RequestKind, naming: Naming) -> list[Request]:
    """Name every request by its content; equal requests get equal keys.

    Args:
        instances: What lm-eval asks; k replies are asked for by listing the same Instance k times.
        kind: How they are asked.
        naming: What the run knows besides.
    """
    seen: Counter[int] = Counter()
    drawn = "" if naming.seed is None else f"seed {naming.seed}"
    requests = []
    for instance in instances:
        repeat = seen[id(instance)]
        seen[id(instance)] += 1
        doc = instance.doc if isinstance(instance.doc, Mapping) else {"doc": instance.doc}
        task = instance.task_name or ""
        numbers = naming.documents.get(task)
        of_task = naming.task_contexts.get(task, "")
        key, plain = (
            request_key(
                context=given, request_type=kind, task=task, doc=doc, arguments=instance.args, repeat=repeat
            )
            for given in (naming.context + of_task, drawn)
        )
        requests.append(
            Request(
                key=key,
                kind=kind,
                arguments=instance.args,
                origin=Origin(task, numbers[instance.doc_id] if numbers else instance.doc_id),
                seed=int(plain[:15], 16),
                truncation=naming.truncations.get(task),
            )
        )
    return requests
