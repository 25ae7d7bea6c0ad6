"""A plan's time and memory from profiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nsa_eval.config import ModelSpec, Variant
from nsa_eval.estimate._measure import Measurement
from nsa_eval.estimate._pace import Pace, Range
from nsa_eval.estimate._profile import Profile, ProfilePoint, shape_of
from nsa_eval.plan import Job, Plan, repeats_of, requests_of

_STOCK = "sdpa"
"""What computes dense attention, whatever backend of NSA's is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEstimate:
    """One job's time."""

    job: Job
    seconds: Range | None
    """None: not known."""
    unknown: str = ""
    """Why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantEstimate:
    """One variant's time and memory, and where that is from."""

    variant: Variant
    jobs: tuple[JobEstimate, ...]
    profile: Profile | None
    """None: nothing is known of its shape."""
    measured: float | None = None
    """Seconds of the measurement just now that the profile is of."""
    elsewhere: str = ""
    """This machine's device, where the profile is of another one."""
    longest: int | None = None
    """Tokens of the longest request whose size is known."""

    @property
    def seconds(self) -> Range | None:
        """Of the jobs that are known, with what is paid once; None where none is."""
        known = [job.seconds for job in self.jobs if job.seconds is not None]
        if not known or self.profile is None:
            return None
        return sum(known, start=Range(0.0, self.profile.warm_up_seconds))

    @property
    def cache_bytes(self) -> int | None:
        """Of keys and values, for one row of the longest request."""
        if self.profile is None or self.profile.kept_bytes is None or self.longest is None:
            return None
        return round(self.profile.kept_bytes * self.longest)

    @property
    def least_bytes(self) -> int | None:
        """Of weights and one row: what the device must have at least."""
        cache = self.cache_bytes
        return (
            None if cache is None or self.profile is None else self.profile.conditions.weights_bytes + cache
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A plan's."""

    variants: tuple[VariantEstimate, ...]

    @property
    def jobs(self) -> dict[str, JobEstimate]:
        """By the job's id."""
        return {one.job.id: one for variant in self.variants for one in variant.jobs}

    @property
    def seconds(self) -> Range | None:
        """Of all that is known, one after another on one device."""
        known = [found for variant in self.variants if (found := variant.seconds) is not None]
        return sum(known, start=Range(0.0, 0.0)) if known else None


def estimate(
    plan: Plan,
    profiles: Sequence[Profile],
    *,
    measured: Mapping[str, Measurement] | None = None,
    device: Callable[[ModelSpec], str] | None = None,
) -> Estimate:
    """Estimate a plan's time and memory, one device working.

    Args:
        plan: The jobs.
        profiles: What is known. Of several that fit a variant those of this machine's device come first, then
            the newest.
        measured: What was measured just now, by variant; comes before all profiles.
        device: Says the name of the device that a model would run on here; asked only where a profile fits.
            Default: torch is asked.
    """
    asked = device or this_device
    variants = list(dict.fromkeys(job.variant.name for job in plan.jobs))
    now = measured or {}
    return Estimate(
        variants=tuple(_variant(plan.of(name), profiles, now.get(name), asked) for name in variants)
    )


def this_device(model: ModelSpec) -> str:
    """The name of the device that a model's `device` means on this machine."""
    import torch

    from nsa_eval._devices import device_name

    wanted = model.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        return wanted
    return device_name(torch.device(wanted))


def _variant(
    jobs: Sequence[Job],
    profiles: Sequence[Profile],
    measured: Measurement | None,
    device: Callable[[ModelSpec], str],
) -> VariantEstimate:
    variant = jobs[0].variant
    model = variant.checkpoint
    shape = shape_of(variant) if profiles and model.lm is None else ""
    fitting = [
        profile
        for profile in profiles
        if profile.shape == shape
        and model.dtype in ("auto", profile.conditions.dtype)
        and (model.backend == "auto" or profile.conditions.backend in (model.backend, _STOCK))
    ]
    chosen: Profile | None
    if measured is not None:
        chosen, here = measured.profile, measured.profile.conditions.device_name
    else:
        here = device(model) if fitting else ""
        chosen = max(fitting, key=lambda p: (p.conditions.device_name == here, p.made), default=None)
    lengths = [one.tokens for job in jobs for one in requests_of(job) or ()]
    pace = None if chosen is None else Paces(chosen)
    return VariantEstimate(
        variant=variant,
        jobs=tuple(_job(job, pace) for job in jobs),
        profile=chosen,
        measured=None if measured is None else measured.seconds,
        elsewhere=here if chosen is not None and chosen.conditions.device_name != here else "",
        longest=max(lengths, default=None),
    )


class Paces:
    """A profile's curves."""

    def __init__(self, profile: Profile) -> None:
        """Fit them."""
        replies = [point for point in profile.points if point.kind == "reply"]
        scored = [point for point in profile.points if point.kind == "scored"]
        # Each kind shares prefixes in its own way: the other's pace is better than none.
        self.prefill: Mapping[str, Pace | None] = {
            "reply": _prefill(replies or scored),
            "scored": _prefill(scored or replies),
        }
        self.decode = Pace.fit(
            [
                (point.tokens + point.new_tokens / 2, point.decode_seconds, point.responses)
                for point in replies
                if point.decode_seconds is not None
            ],
            highest=1,
        )
        answers = sum(point.responses for point in replies)
        self.reply = (
            sum(point.responses * point.new_tokens for point in replies) / answers if answers else None
        )
        """Mean tokens of a reply."""


def _prefill(points: Sequence[ProfilePoint]) -> Pace | None:
    return Pace.fit([(one.tokens, one.prefill_seconds, one.responses) for one in points], highest=2)


def _job(job: Job, paces: Paces | None) -> JobEstimate:
    sizes = requests_of(job)
    if sizes is None:
        return JobEstimate(job=job, seconds=None, unknown="only a task's data tell its size")
    if paces is None:
        return JobEstimate(job=job, seconds=None, unknown="no profile")
    repeats = repeats_of(job.task, job.params) or 1
    total = Range(0.0, 0.0)
    for size in sizes:
        prompt = max(1, size.tokens - size.new_tokens)
        prefill = paces.prefill["reply" if size.new_tokens else "scored"]
        if prefill is None:
            return JobEstimate(job=job, seconds=None, unknown="prefill was not measured")
        # Prompts that are asked several times may be read once, or each time.
        total += prefill.at(prompt).times(size.documents, size.documents * repeats)
        if size.new_tokens > 1:
            if paces.decode is None:
                return JobEstimate(job=job, seconds=None, unknown="decode was not measured")
            # Replies end when they like: as those did that were measured, or with their budget.
            most = size.new_tokens - 1
            least = min(most, max(0.0, (paces.reply or 1.0) - 1))
            answers = size.documents * repeats
            near, far = paces.decode.at(prompt + least / 2), paces.decode.at(prompt + most / 2)
            total += Range(near.low * least * answers, far.high * most * answers)
    return JobEstimate(job=job, seconds=Range(0.0, total.high) if job.at_most else total)
