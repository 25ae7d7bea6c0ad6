"""The comparison of a run directory as its run.yaml wants it: computed, or read from comparison.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nsa_eval.comparison._compare import CONFIDENCE, RESAMPLES, SEED, baseline_of, compare, labelled
from nsa_eval.comparison._mismatch import ProtocolMismatchError
from nsa_eval.comparison._stored import read_stored
from nsa_eval.comparison._types import Comparison
from nsa_eval.errors import UserError
from nsa_eval.results import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What became of comparing a run's models."""

    comparison: Comparison | None = None
    """None for a run of one model, and where the models can't be compared."""
    refusal: tuple[str, ...] = ()
    """Why they can't be, a line for each reason."""
    message: str = ""
    """The same in one text, for a terminal."""


def compare_run(run: Run, *, stored: Path | None = None) -> Compared:
    """Compares all models of a run by its run.yaml: baseline, confidence, resamples and seed.

    Models that can't be compared are no error here: their scores are worth having.

    Args:
        run: The run.
        stored: A comparison.json; what it holds is taken if it was made of the same results and settings.
    """
    if len(run.models) < 2:
        return Compared()
    section = (run.config or {}).get("compare")
    settings = section if isinstance(section, dict) else {}
    asked = {key: value for key, value in settings.items() if value is not None}
    confidence = asked.get("confidence", CONFIDENCE)
    resamples, seed = asked.get("resamples", RESAMPLES), asked.get("seed", SEED)
    try:
        if stored is not None:
            models = labelled([run])
            wanted = {"confidence": confidence, "resamples": resamples, "seed": seed}
            found = read_stored(stored, models, baseline=baseline_of(models), settings=wanted)
            if found is not None:
                return Compared(comparison=found)
        return Compared(comparison=compare(run, confidence=confidence, resamples=resamples, seed=seed))
    except ProtocolMismatchError as error:  # asked differently
        return Compared(refusal=error.differences, message=str(error))
    except UserError as error:  # no score that both have, ...
        return Compared(refusal=(str(error),), message=str(error))
