"""Is a comparison that lies in a run directory still the one that its results would give?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from nsa_eval.comparison._types import Comparison
from nsa_eval.results import ModelRun


def digest(model: ModelRun) -> str:
    """SHA-256 of what a comparison takes from a model's results: documents, requests, scores, audit.

    The same results give the same digest wherever they lie and however they are called.
    """
    tasks = {
        name: {
            "version": task.version,
            "filters": task.config.get("filter_list"),
            "num_fewshot": task.num_fewshot,
            "higher_is_better": task.higher_is_better,
            "samples": {
                filter_name: [
                    [
                        sample.doc_hash,
                        sample.prompt_hash,
                        sample.target_hash,
                        sample.requests_hash,
                        # In a fixed order, with NaN as text: JSON has none.
                        sorted((metric, repr(score)) for metric, score in sample.metrics.items()),
                        sample.repeats,
                        sample.length,
                    ]
                    for sample in samples
                ]
                for filter_name, samples in task.filters.items()
            },
        }
        for name, task in model.tasks.items()
    }
    events = [{key: value for key, value in event.items() if key != "model"} for event in model.audit]
    groups = {name: group.model_dump() for name, group in model.groups.items()}
    text = json.dumps({"tasks": tasks, "groups": groups, "audit": events}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_comparison(file: Path) -> Comparison | None:
    """The comparison that a file holds; None where there is none, or it can't be read."""
    try:
        return Comparison.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def read_stored(
    file: Path, models: Mapping[str, ModelRun], *, baseline: str, settings: Mapping[str, float | int]
) -> Comparison | None:
    """The comparison of a file, if it was made of these models' results with these settings.

    Args:
        file: A comparison.json.
        models: By label, as `compare` would take them.
        baseline: Label of the baseline that is wanted.
        settings: confidence, resamples and seed that are wanted.

    Returns:
        The comparison; None where there is none, it can't be read, or `compare` would find another.
    """
    found = read_comparison(file)
    if found is None:
        return None
    labels = [model.label for model in found.models]
    wanted = [baseline, *(label for label in models if label != baseline)]
    if labels != wanted or any(getattr(found, key) != value for key, value in settings.items()):
        return None
    alike = all(model.digest and model.digest == digest(models[model.label]) for model in found.models)
    return found if alike else None
