"""A run that is under way: what all of its stages share."""

from __future__ import annotations

from dataclasses import dataclass

from nsa_eval.config import RunConfig
from nsa_eval.plan import Plan
from nsa_eval.progress import Progress
from nsa_eval.rundir import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class OngoingRun:
    """What was asked for, where it goes, and who is told."""

    config: RunConfig
    """The whole run's, resolved."""
    plan: Plan
    """Its jobs."""
    directory: RunDirectory
    """Where results go."""
    progress: Progress
    """Told of every stage and response."""
