"""Samples of a report: one document, every model's reply side by side."""

import math
from collections.abc import Iterable, Iterator, Mapping

from nsa_eval.audit import describe
from nsa_eval.results import ModelRun, Sample
from nsa_reports import Extract, Reply, ShownSample

_Place = tuple[str, int]
"""Hash of a document, and which of its samples."""


def side_by_side(task: str, models: Mapping[str, ModelRun], key: tuple[str, str]) -> tuple[ShownSample, ...]:
    """The documents of a task with the replies of all models that answered them.

    Args:
        task: Task name.
        models: By label, in the report's order.
        key: (metric, filter) whose score is shown.
    """
    metric, filter_name = key
    replies: dict[_Place, list[tuple[str, Sample]]] = {}
    filters: dict[str, dict[str, dict[_Place, Sample]]] = {}
    for label, model in models.items():
        of_task = model.tasks[task].filters if task in model.tasks else {}
        filters[label] = {name: dict(_places(samples)) for name, samples in of_task.items()}
        for place, sample in filters[label].get(filter_name, {}).items():
            replies.setdefault(place, []).append((label, sample))
    events = {label: _events(task, model) for label, model in models.items()}
    shown = []
    for place, answered in replies.items():
        first = answered[0][1]
        shown.append(
            ShownSample(
                id=first.name,
                replies=tuple(
                    Reply(
                        model=label,
                        text=sample.reply,
                        more=sample.replies[1:],
                        extracts=_extracts(filters[label], place, metric),
                        reasons=sample.reasons,
                        score=_score(sample, metric),
                        notes=(*events[label].get(str(sample.doc_id), ()), *_cuts(sample)),
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


def _places(samples: Iterable[Sample]) -> Iterator[tuple[_Place, Sample]]:
    """Samples of one document stay apart: the k-th of one model stands beside the k-th of another."""
    seen: dict[str, int] = {}
    for sample in samples:
        turn = seen[sample.doc_hash] = seen.get(sample.doc_hash, 0) + 1
        yield (sample.doc_hash, turn), sample


def _extracts(
    filters: Mapping[str, Mapping[_Place, Sample]], place: _Place, metric: str
) -> tuple[Extract, ...]:
    """What every filter of the task made of a document's replies."""
    found = {name: samples[place] for name, samples in filters.items() if place in samples}
    return tuple(
        Extract(filter=name if len(found) > 1 else "", texts=sample.extracted, score=_score(sample, metric))
        for name, sample in found.items()
        if sample.extracted
    )


def _cuts(sample: Sample) -> tuple[str, ...]:
    """Which replies the budget cut, where they were to end with an answer."""
    cut = [number for number, ended in enumerate(sample.finished, 1) if not ended]
    if not cut or not sample.votes:
        return ()
    if len(sample.finished) == 1:
        return ("the reply was cut by its budget",)
    which = "all" if len(cut) == len(sample.finished) else f"number {', '.join(map(str, cut))}"
    return (f"cut by their budget: {which} of {len(sample.finished)} replies",)


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
