"""An estimate as a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator

from nsa_eval._words import bytes_text, counted, seconds_text
from nsa_eval.estimate._estimate import Estimate, Paces, VariantEstimate
from nsa_eval.estimate._pace import Range
from nsa_eval.estimate._profile import Profile, profiles_folder
from nsa_eval.progress import duration

_HOW = "--dry-run --measure measures a little, here and now; --profile PATH names a profile"
_NAMED_MODELS = 3
"""Of more models of which nothing is known, the first is named: a sweep has many."""


def time_range(seconds: Range | None) -> str:
    """`3m 10s to 5m 00s`, `up to 5m 00s`, no finer than the estimate is; `?` where nothing is known."""
    if seconds is None:
        return "?"
    low, high = _coarse(seconds.low, up=False), _coarse(seconds.high, up=True)
    if low == 0 and high > 0:
        return f"up to {duration(high)}"
    return duration(high) if duration(low) == duration(high) else f"{duration(low)} to {duration(high)}"


def estimate_lines(found: Estimate, *, workers: str = "local") -> list[str]:
    """Total, then each model's time, memory and where they are from.

    Args:
        found: The estimate.
        workers: The executor: others than local have several devices.
    """
    jobs = list(found.jobs.values())
    known = [job for job in jobs if job.seconds is not None]
    if all(variant.profile is None for variant in found.variants):
        folder = profiles_folder()
        kept = f" Every run leaves a profile in {folder}." if folder is not None else ""
        return [f"time: nothing is known of these models' pace.{kept} {_HOW}"]
    lines = [
        f"time: {time_range(found.seconds)} for {len(known)} of {counted(len(jobs), 'job')}"
        + (", on one device" if workers != "local" else "")
        + ", if nothing is stored yet; loading weights and tasks comes on top"
    ]
    for variant in found.variants:
        if not _is_unknown(variant):
            lines += [f"  {line}" if index else line for index, line in enumerate(_variant(variant))]
    unknown = [variant.variant.name for variant in found.variants if _is_unknown(variant)]
    if unknown:
        models = (
            ", ".join(unknown)
            if len(unknown) <= _NAMED_MODELS
            else f"{unknown[0]} and {len(unknown) - 1} more"
        )
        lines.append(f"{models}: ? (nothing is known of such a model's pace: {_HOW})")
    why = dict.fromkeys(job.unknown for job in jobs if job.unknown and job.unknown != "no profile")
    lines += [f"jobs with ?: {reason}" for reason in why]
    return lines


def _is_unknown(found: VariantEstimate) -> bool:
    """Whether no run has told of such a model yet; through lm-eval's own classes none ever does."""
    return found.profile is None and found.variant.checkpoint.lm is None


def _variant(found: VariantEstimate) -> Iterator[str]:
    profile = found.profile
    name = found.variant.name
    if profile is None:
        yield f"{name}: ? (asked through lm-eval's {found.variant.checkpoint.lm}: costs aren't recorded)"
        return
    conditions = profile.conditions
    where = f"{conditions.device_name}, {conditions.dtype}, {conditions.backend}"
    yield f"{name}: {time_range(found.seconds)}, {_source(found, where)}"
    if found.elsewhere:
        yield f"this machine has another device ({found.elsewhere}): expect other times"
    longest = max(point.tokens for point in profile.points)
    if found.longest is not None and found.longest > 1.1 * longest:
        yield (
            f"measured up to {longest:,.0f} tokens, and the longest request has {found.longest:,}: the rest "
            "is extrapolated"
        )
    if any(job.seconds is None for job in found.jobs):
        yield _pace(profile, round(longest))
    yield from _memory(found)


def _pace(profile: Profile, tokens: int) -> str:
    """For those who know the size of what the plan doesn't."""
    paces = Paces(profile)
    prefill = paces.prefill["reply"]
    text = (
        f"pace at {tokens:,} tokens: a prompt {_fine(prefill.at(tokens))}" if prefill is not None else "pace:"
    )
    return text if paces.decode is None else f"{text}, a token behind it {_fine(paces.decode.at(tokens))}"


def _fine(seconds: Range) -> str:
    return f"{seconds_text(seconds.low)} to {seconds_text(seconds.high)}"


def _source(found: VariantEstimate, where: str) -> str:
    profile = found.profile
    assert profile is not None
    if found.measured is not None:
        return f"from a measurement of {duration(max(1.0, found.measured))} just now ({where})"
    runs = profile.runs
    if not runs:
        return f"from a measurement of {profile.made} ({where})"
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    return f"from the profile of {runs[0]}{more} ({profile.made}, {where})"


def _memory(found: VariantEstimate) -> Iterator[str]:
    profile = found.profile
    assert profile is not None
    conditions = profile.conditions
    text = f"memory: {bytes_text(conditions.weights_bytes)} of weights"
    cache, least, room = found.cache_bytes, found.least_bytes, conditions.device_bytes
    if cache is not None and found.longest is not None:
        text += f", {bytes_text(cache)} of keys and values for each row of {found.longest:,} tokens"
    if profile.peak_bytes is not None:
        text += f"; such runs have peaked at {bytes_text(profile.peak_bytes)}"
    if room is not None:
        text += f"; the device has {bytes_text(room)}"
    if least is not None and room is not None and least > room:
        text += f": IT DOES NOT FIT, weights and one row alone are {bytes_text(least)}"
    yield text


def _coarse(seconds: float, *, up: bool) -> float:
    """Two digits at most, towards the cautious side: an estimate isn't finer."""
    for step, above in ((3600, 36000), (600, 7200), (60, 600), (10, 100), (5, 30), (1, 0)):
        if seconds > above:
            whole = -(-seconds // step) if up else seconds // step
            return float(whole * step)
    return 0.0
