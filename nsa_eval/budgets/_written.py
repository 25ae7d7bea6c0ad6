"""The figures of the report's budgets section as files: a line per point, and everything as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nsa_eval._markup import csv_cell
from nsa_eval.budgets._points import Density, Point
from nsa_eval.budgets._study import EqualCost, Line, Place, Study
from nsa_eval.budgets.least import Least, Trial

BUDGETS = "budgets"
"""Name of its files; no table of a config may have it."""


def write_budgets(study: Study, folder: Path) -> list[Path]:
    """Write budgets.csv and budgets.json.

    Args:
        study: What was worked out.
        folder: Where; made if it isn't there.

    Returns:
        The files.
    """
    from nsa_eval.rundir import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{BUDGETS}.csv", folder / f"{BUDGETS}.json"]
    texts = (budgets_csv(study), json.dumps(budgets_json(study), indent=2) + "\n")
    for file, text in zip(files, texts, strict=True):
        write_atomically(file, text)
    return files


def budgets_csv(study: Study) -> str:
    """A line per point, at full precision; scores in points of 100, or raw, as `unit` says."""
    rows = [row for place in study.places for row in _rows(place, study)]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: csv_cell(value) for key, value in row.items()})
    return out.getvalue()


def budgets_json(study: Study) -> dict[str, Any]:
    """Everything: points, scores at equal cost, and the tests behind the least budgets."""
    return {
        "confidence": study.confidence,
        "margin": study.margin,
        "interpolation": "linear between measured points",
        "refusal": list(study.refusal),
        "places": [
            {
                "task": place.task,
                "length": place.length,
                "metric": place.metric,
                "unit": _unit(place),
                "points": list(_rows(place, study)),
                "least": [_least(line, place) for line in place.lines],
                "iso_flops": [_equal(one, place) for one in place.iso_flops],
                "iso_cost": [_equal(one, place) for one in place.iso_cost],
            }
            for place in study.places
        ],
    }


def _rows(place: Place, study: Study) -> Iterator[dict[str, Any]]:
    for point in place.full:
        yield _row(place, study, None, point, None)
    for line in place.lines:
        trials = {trial.label: trial for trial in (line.least.trials if line.least else ())}
        for point in line.points:
            yield _row(place, study, line, point, trials.get(point.label))


def _row(place: Place, study: Study, line: Line | None, point: Point, trial: Trial | None) -> dict[str, Any]:
    interval = trial.interval if trial is not None else None
    found = line.least.found if line is not None and line.least is not None else None
    return {
        "task": place.task,
        "length": place.length,
        "metric": place.metric,
        "model": point.label,
        "sweep": "full attention" if line is None else line.sweep.name,
        "parameter": "" if line is None else line.sweep.parameter,
        "value": point.value,
        "unit": _unit(place),
        "score": _scaled(point.score.value, place),
        "low": _scaled(point.score.low, place),
        "high": _scaled(point.score.high, place),
        "n": point.score.n,
        **_density("prefill", point.prefill),
        **_density("decode", point.decode),
        "kv_read_tokens": point.read,
        "kv_kept_tokens": point.kept,
        "prompt_flops": point.flops,
        "step_elements": point.elements,
        "decode_ms": point.decode_ms if study.timed else None,
        "prefill_seconds": point.prefill_seconds if study.timed else None,
        "difference": None if trial is None else _scaled(trial.difference, place),
        "difference_low": None if interval is None else _scaled(interval.low, place),
        "difference_high": None if interval is None else _scaled(interval.high, place),
        "not_worse": None if trial is None else trial.not_worse,
        "least": None if trial is None else found is not None and found.label == point.label,
    }


def _density(phase: str, density: Density | None) -> dict[str, Any]:
    return {
        f"{phase}_density": None if density is None else density.value,
        f"{phase}_source": "" if density is None else density.source,
    }


def _least(line: Line, place: Place) -> dict[str, Any]:
    least: Least | None = line.least
    found = least.found if least is not None else None
    return {
        "sweep": line.sweep.name,
        "parameter": line.sweep.parameter,
        "reference": line.sweep.reference,
        "outcome": "as full" if line.as_full else "unknown" if least is None else least.outcome,
        "margin": None if least is None else _scaled(least.margin, place),
        "model": None if found is None else found.label,
        "documents_needed": None if least is None else least.needed,
        "tested": [trial.label for trial in least.trials] if least is not None else [],
    }


def _equal(one: EqualCost, place: Place) -> dict[str, Any]:
    return {
        "density": one.level.density,
        "cost": one.level.cost,
        "share_of_dense": one.level.share,
        "scores": {
            line.sweep.name: None
            if score is None
            else {"score": _scaled(score.value, place), "interpolated": score.interpolated}
            for line, score in zip(place.lines, one.scores, strict=True)
        },
    }


def _unit(place: Place) -> str:
    return "points" if place.percent else "raw"


def _scaled(value: float | None, place: Place) -> float | None:
    return None if value is None else round(value * 100, 10) if place.percent else value
