"""Which samples go into the page, how much of each, and how they are embedded safely.

A run can hold tens of thousands of long replies; a page that opens anywhere cannot. At most so many samples
are kept per cell (or per task without a grid), those most worth reading first, and the page says how many
were left out. If the rest is still too big, everybody's share shrinks until it fits.
"""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from nsa_reports._format import finite
from nsa_reports.page import ALL, Page
from nsa_reports.view import Reply, ShownSample

_MAX_SAFE_INTEGER = 2**53 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SampleLimits:
    """How much of the samples a page embeds."""

    per_cell: int = 8
    """Samples per cell of a needle grid."""
    per_task: int = 50
    """Samples per task without a grid."""
    prompt_chars: int = 1_200
    """Characters kept of the prompt, from its end."""
    reply_chars: int = 4_000
    """Characters kept of a reply (from its start), of a needle and of each expected answer."""
    total_bytes: int = 8_000_000
    """Bytes of all samples together."""

    def __post_init__(self) -> None:
        """Check that every limit is positive.

        Raises:
            ValueError: a limit is below 1.
        """
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be at least 1, got {getattr(self, field.name)}")

    def smaller(self) -> SampleLimits | None:
        """The next tighter limits: fewer samples first, then shorter texts; None when there are none."""
        if self.per_cell > 1 or self.per_task > 1:
            return dataclasses.replace(
                self, per_cell=max(1, self.per_cell // 2), per_task=max(1, self.per_task // 2)
            )
        if self.prompt_chars > 200 or self.reply_chars > 200:
            return dataclasses.replace(
                self,
                prompt_chars=max(200, self.prompt_chars // 2),
                reply_chars=max(200, self.reply_chars // 2),
            )
        return None


def _interest(sample: ShownSample) -> tuple[bool, float]:
    """Sort key: models that disagree first, then the lowest scores. Stable, so ties keep their order."""
    scores = [score for score in (finite(reply.score) for reply in sample.replies) if score is not None]
    return (len(set(scores)) < 2, sum(scores) / len(scores) if scores else 0.0)


def pick(samples: Sequence[ShownSample], limit: int) -> tuple[ShownSample, ...]:
    """At most `limit` samples, the ones most worth reading, in that order."""
    return tuple(sorted(samples, key=_interest)[:limit])


_all_but_model = operator.attrgetter(
    *(field.name for field in dataclasses.fields(Reply) if field.name != "model")
)


def _head(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} […{len(text) - limit:,} more characters]"


def _heads(texts: Sequence[str], limits: SampleLimits) -> list[str]:
    return [_head(text, limits.reply_chars) for text in texts]


def _tail(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"[{len(text) - limit:,} characters before…] {text[-limit:]}"


def _record(sample: ShownSample, models: dict[str, int], limits: SampleLimits) -> dict[str, Any]:
    # Models that reply alike share an entry: with many variants of one checkpoint most of them do.
    alike: dict[object, tuple[Reply, list[int]]] = {}
    for reply in sorted(sample.replies, key=lambda reply: models[reply.model]):
        alike.setdefault(_all_but_model(reply), (reply, []))[1].append(models[reply.model])
    replies = []
    for reply, places in alike.values():
        entry: dict[str, Any] = {
            "models": places,
            "text": _head(reply.text, limits.reply_chars),
            "score": finite(reply.score),
        }
        if reply.more:
            entry["more"] = _heads(reply.more, limits)
        if reply.extracts:
            entry["extracts"] = [
                {"filter": found.filter, "texts": _heads(found.texts, limits), "score": finite(found.score)}
                for found in reply.extracts
            ]
        entry |= {"reasons": list(reply.reasons)} if any(reply.reasons) else {}
        entry |= {"notes": list(reply.notes)} if reply.notes else {}
        if reply.prompt_end is not None and reply.prompt_end != sample.prompt_end:
            entry["prompt"] = _tail(reply.prompt_end, limits.prompt_chars)
        replies.append(entry)
    return {
        "id": sample.id,
        # JavaScript rounds whole numbers beyond this; as text a seed stays the one to copy.
        "seed": str(sample.seed) if abs(sample.seed or 0) > _MAX_SAFE_INTEGER else sample.seed,
        "prompt": _tail(sample.prompt_end, limits.prompt_chars),
        "needle": _head(sample.needle, limits.reply_chars),
        "expected": [_head(text, limits.reply_chars) for text in sample.expected],
        "replies": replies,
    }


def _bundle(
    samples: Sequence[ShownSample], limit: int, models: dict[str, int], limits: SampleLimits
) -> dict[str, Any]:
    shown = [_record(sample, models, limits) for sample in pick(samples, limit)]
    return {"total": len(samples), "shown": shown}


def embed(page: Page, limits: SampleLimits) -> dict[str, dict[str, Any]]:
    """Samples of every section within the limits.

    Returns:
        By list of samples (as `SectionData.samples` names them) a dict from place (`row,column`, or `all`) to
        `{"total": int, "shown": [...]}`.
    """
    models = {name: index for index, name in enumerate(page.models)}
    lists = {key: places for section in page.sections for key, places in section.data.samples().items()}
    while True:
        bundles = {
            key: {
                place: _bundle(found, limits.per_task if place == ALL else limits.per_cell, models, limits)
                for place, found in places.items()
            }
            for key, places in lists.items()
        }
        tighter = limits.smaller()
        if tighter is None or len(script_json(bundles)) <= limits.total_bytes:
            return bundles
        limits = tighter


def left_out(lists: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """Samples shown and samples in all, over the lists that `embed` made."""
    bundles = [bundle for places in lists.values() for bundle in places.values()]
    return sum(len(bundle["shown"]) for bundle in bundles), sum(bundle["total"] for bundle in bundles)


def script_json(value: object) -> str:
    """JSON that can stand inside a `<script>` element whatever text it holds.

    Everything outside ASCII is escaped (U+2028 and lone surrogates too), and so are `<`, `>` and `&`: neither
    `</script>` nor `<!--` nor `-->` can appear. The result is still the same JSON.

    Raises:
        ValueError: the value holds NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
