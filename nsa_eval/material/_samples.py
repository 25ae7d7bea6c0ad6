"""Samples of a report: one document, every model's reply side by side."""

import math
from collections.abc import Mapping

from nsa_eval.audit import describe
from nsa_eval.results import ModelRun, Sample
from nsa_reports import Reply, ShownSample


def side_by_side(task: str, models: Mapping[str, ModelRun], key: tuple[str, str]) -> tuple[ShownSample, ...]:
    """The documents of a task with the replies of all models that answered them.

    Args:
        task: Task name.
        models: By label, in the report's order.
        key: (metric, filter) whose score is shown.
    """
    metric, filter_name = key
    replies: dict[tuple[str, int], list[tuple[str, Sample]]] = {}
    for label, model in models.items():
        seen: dict[str, int] = {}
        for sample in model.tasks[task].filters.get(filter_name, ()) if task in model.tasks else ():
            # Samples of one document stay apart: the k-th of one model stands beside the k-th of another.
            turn = seen[sample.doc_hash] = seen.get(sample.doc_hash, 0) + 1
            replies.setdefault((sample.doc_hash, turn), []).append((label, sample))
    events = {label: _events(task, model) for label, model in models.items()}
    shown = []
    for answered in replies.values():
        first = answered[0][1]
        shown.append(
            ShownSample(
                id=first.name,
                replies=tuple(
                    Reply(
                        model=label,
                        text=sample.reply,
                        more=sample.replies[1:],
                        extracted=sample.extracted,
                        reasons=sample.reasons,
                        score=_score(sample, metric),
                        notes=events[label].get(str(sample.doc_id), ()),
                        prompt_end=None if sample.prompt_end == first.prompt_end else sample.prompt_end,
                    )
                    for label, sample in answered
                ),
                expected=first.expected,
                prompt_end=first.prompt_end,
                needle=first.needle or "",
                seed=first.seed,
                length=first.length,
                depth=first.depth,
            )
        )
    return tuple(shown)


def _events(task: str, model: ModelRun) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for event in model.audit:
        if event.get("task") == task and event.get("doc_id") is not None:
            doc = str(event["doc_id"])
            found[doc] = (*found.get(doc, ()), describe(event))
    return found


def _score(sample: Sample, metric: str) -> float | None:
    score = sample.metrics.get(metric)
    return score if score is not None and math.isfinite(score) else None
