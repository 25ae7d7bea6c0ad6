"""What a model took on a device, kept for later plans: seconds by length, bytes of weights and cache.

One file for each checkpoint's shape, device, dtype and backend, under the user's cache folder. Models of one
shape take the same time whatever their weights, so a profile serves every checkpoint of a training run.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nsa_eval._paths import user_path
from nsa_eval.catalog import checkpoint_config
from nsa_eval.config import Variant
from nsa_eval.errors import UserError
from nsa_eval.store import Conditions, CostKind, CostSheet

FOLDER_VARIABLE = "NSA_EVAL_PROFILES"
"""Environment variable that names the folder of profiles; `off`: none are kept or looked up."""

_LARGEST = 1 << 20
# Fields of config.json that change no time.
_NAMES = frozenset({
    "_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype", "auto_map", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout", "id2label",
    "label2id",
})  # fmt: skip


class ProfilePoint(BaseModel):
    """Answers of about one length."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: CostKind
    tokens: float
    """Mean length of what was read."""
    new_tokens: float
    """Mean length of the replies; 0 for scored text."""
    responses: int
    prefill_seconds: float
    """Of a response."""
    decode_seconds: float | None = None
    """Of a token."""
    run: str
    """The run that it comes from; empty for a measurement."""
    made: str
    """Its day, as 2026-01-31."""

    @property
    def place(self) -> tuple[str, int]:
        """Points of one place replace each other."""
        return self.kind, round(self.tokens).bit_length()


class Profile(BaseModel):
    """One checkpoint's shape on one device."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    shape: str
    """See `shape_of`."""
    model: str
    """Whose it was first, for a reader."""
    conditions: Conditions
    points: tuple[ProfilePoint, ...]
    kept_bytes: float | None = None
    """Of keys and values, for each token of a row, at most."""
    peak_bytes: int | None = None
    """Most device memory that any run of it used."""
    warm_up_seconds: float = 0.0

    @property
    def made(self) -> str:
        """The day of its newest point."""
        return max(point.made for point in self.points)

    @property
    def runs(self) -> tuple[str, ...]:
        """Runs that its points come from, the newest first."""
        newest = sorted(self.points, key=lambda point: point.made, reverse=True)
        return tuple(dict.fromkeys(point.run for point in newest if point.run))

    @property
    def file_name(self) -> str:
        """Where it is kept: one file for each shape, device, dtype and backend."""
        where = (self.conditions.device_name, self.conditions.dtype, self.conditions.backend)
        return f"{self.shape}-{hashlib.sha256(repr(where).encode()).hexdigest()[:12]}.json"


def shape_of(variant: Variant) -> str:
    """A hash of all of a variant that time and memory depend on: its config's sizes, its method.

    A hub id, whose config isn't at hand, goes by its name and revision.
    """
    model = variant.checkpoint
    found = checkpoint_config(model.path)
    content: object = (
        {"path": model.path, "revision": model.revision}
        if found is None
        else {key: value for key, value in found.items() if key not in _NAMES}
    )
    text = json.dumps([content, variant.settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def profile_of(sheet: CostSheet, variant: Variant, *, run: str, made: str | None = None) -> Profile | None:
    """What a variant's costs say of its pace; None where they have none, or nothing says where they are from.

    Args:
        sheet: Its costs.
        variant: Which it is.
        run: The run's name; empty for a measurement.
        made: Its day; today by default.
    """
    day = made or time.strftime("%Y-%m-%d")
    points = []
    for row in sheet.lengths:
        cost = row.cost
        if not cost.responses or cost.prefill_seconds <= 0 or row.tokens < 1:
            continue
        points.append(
            ProfilePoint(
                kind=row.kind,
                tokens=row.tokens,
                new_tokens=cost.new_tokens / cost.responses if row.kind == "reply" else 0.0,
                responses=cost.responses,
                prefill_seconds=cost.prefill_seconds / cost.responses,
                decode_seconds=cost.decode_seconds / cost.decode_steps if cost.decode_steps else None,
                run=run,
                made=day,
            )
        )
    if sheet.conditions is None or not points:
        return None
    costs = [row.cost for row in sheet.lengths]
    kept = [row.cost.kv_kept_bytes / row.longest for row in sheet.lengths if row.cost.kv_kept_bytes]
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    return Profile(
        shape=shape_of(variant),
        model=variant.checkpoint.path,
        conditions=sheet.conditions,
        points=tuple(points),
        kept_bytes=max(kept, default=None),
        peak_bytes=max(peaks, default=None),
        warm_up_seconds=sum(cost.warm_up_seconds for cost in sheet.tasks.values()),
    )


def profiles_folder() -> Path | None:
    """Where profiles are kept: NSA_EVAL_PROFILES, or nsa-eval/profiles in the user's cache folder.

    None where that is switched off, or there is no home folder.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return None if named == "off" else user_path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "nsa-eval" / "profiles"
    except RuntimeError:
        return None


def keep_profile(profile: Profile) -> Path | None:
    """Keep a profile for later plans, with the lengths that an earlier one of the same kind has besides.

    Returns:
        Its file; None where there is no folder, or it can't be written: a run never fails for that.
    """
    from nsa_eval.rundir import write_atomically

    folder = profiles_folder()
    if folder is None:
        return None
    file = folder / profile.file_name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        before = _or_none(file) if file.is_file() else None
        whole = profile if before is None else _joined(before, profile)
        write_atomically(file, whole.model_dump_json(indent=2) + "\n")
    except (OSError, UserError):
        return None
    return file


def read_profiles(named: str | os.PathLike[str] | None = None) -> list[Profile]:
    """Read kept profiles, or those of a file or folder that is named.

    Raises:
        UserError: A named file that isn't there or isn't a profile. Of kept ones such are passed over.
    """
    folder = profiles_folder()
    if named is None:
        files = sorted(folder.glob("*.json")) if folder is not None else []
        return [profile for file in files if (profile := _or_none(file)) is not None]
    path = user_path(named)
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise UserError(f"--profile {named}: no *.json in that folder; runs keep theirs in {folder}")
        return [_read(file) for file in files]
    if not path.is_file():
        raise UserError(f"--profile {named}: no such file or folder; runs keep profiles in {folder}")
    return [_read(path)]


def _read(file: Path) -> Profile:
    try:
        if file.stat().st_size > _LARGEST:
            raise UserError(f"{file}: too large for a profile")
        return Profile.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"{file}: not a profile that nsa-eval wrote ({said}); remove it or name another"
        ) from None


def _or_none(file: Path) -> Profile | None:
    try:
        return _read(file)
    except UserError:
        return None


def _joined(old: Profile, new: Profile) -> Profile:
    """The new one, with the old one's points of other lengths."""
    points = {point.place: point for point in (*old.points, *new.points)}
    peaks = [peak for peak in (old.peak_bytes, new.peak_bytes) if peak is not None]
    kept = [each for each in (old.kept_bytes, new.kept_bytes) if each is not None]
    return new.model_copy(
        update={
            "points": tuple(points[place] for place in sorted(points)),
            "peak_bytes": max(peaks, default=None),
            "kept_bytes": max(kept, default=None),
            "warm_up_seconds": max(old.warm_up_seconds, new.warm_up_seconds),
        }
    )
