"""One samples_*.jsonl file, read line by line: a 64k prompt is 300 kB, and only its end is kept."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nsa_eval._json import parse_json
from nsa_eval.errors import UserError
from nsa_eval.results._types import Sample
from nsa_eval.results.cuts import cut_by_task

PROMPT_END_CHARACTERS = 1200
"""Characters of the prompt's end that are kept: the question and the needle's surroundings at depth 100 %."""

# Keys of a sample that are not metrics, for files older than lm-eval 0.4.8, which don't list their metrics.
_FIXED = frozenset(
    {
        *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
        *("doc_hash", "prompt_hash", "target_hash", "new_tokens", "finished"),
    }
)


def read_samples(path: Path) -> dict[str, list[Sample]]:
    """All samples of a file, by filter name, in the file's order.

    Raises:
        UserError: The file can't be read, or a line of it is not a sample; names file and line.
    """
    filters: dict[str, list[Sample]] = {}
    for number, record in _records(path):
        try:
            sample = _sample(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise UserError(
                f"{path}, line {number}: not an lm-eval sample ({what}). Delete the file's run and evaluate "
                f"again; nsa-eval then takes finished replies from its store."
            ) from error
        filters.setdefault(str(record.get("filter", "none")), []).append(sample)
    return filters


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = parse_json(line)
                except ValueError as error:
                    raise UserError(
                        f"{path}, line {number}: damaged, expected a JSON object ({error}). The file was cut "
                        "or edited: evaluate again."
                    ) from error
                if not isinstance(record, dict):
                    raise UserError(
                        f"{path}, line {number}: expected a JSON object, got {type(record).__name__}"
                    )
                yield number, record
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read ({error})") from error


def _sample(record: dict[str, Any]) -> Sample:
    doc = record["doc"] if isinstance(record.get("doc"), dict) else {}
    requests = _requests(record["arguments"])
    prompt = str(requests[0][0]) if requests and requests[0] else ""
    resps = record.get("resps") or []
    replies = _replies(requests, resps)
    repeats = len(resps[0]) if resps and isinstance(resps[0], list) else 1
    # A follow-up is worded by the model's own first reply: two models that were asked alike differ there.
    asked = requests[: len(requests) - follow_ups] if (follow_ups := _follow_ups(doc)) else requests
    return Sample(
        doc_id=record["doc_id"],
        name=str(doc.get("id", record["doc_id"])),
        doc_hash=record.get("doc_hash") or _doc_hash(record["doc"]),
        prompt_hash=record.get("prompt_hash") or _sha(prompt),
        target_hash=record.get("target_hash") or _sha(str(record.get("target", ""))),
        requests_hash=_sha(json.dumps(asked, sort_keys=True, ensure_ascii=False, default=str)),
        settings=_settings(asked),
        metrics=_metrics(record),
        repeats=max(1, repeats),
        length=doc["length"] if _is_whole(doc.get("length")) else None,
        depth=float(doc["depth"]) if _is_number(doc.get("depth")) else None,
        seed=doc["seed"] if _is_whole(doc.get("seed")) else None,
        needle=_text(doc.get("needle")),
        answer=_text(doc.get("answer")),
        cut=cut_by_task(doc) is not None,
        prompt_end=prompt[-PROMPT_END_CHARACTERS:],
        replies=replies,
        extracted=_answers(doc.get("reply_answers"))
        or _extracted(resps, record.get("filtered_resps"), replies),
        reasons=_answers(doc.get("reasons")),
        expected=_answers(doc.get("outputs")) or (str(record.get("target", "")),),
        new_tokens=_numbers(record.get("new_tokens")),
        finished=tuple(bool(one) for one in _list(record.get("finished"))),
        votes=_numbers(doc.get("reply_votes")),
    )


def _requests(arguments: Any) -> list[list[Any]]:  # noqa: ANN401 - whatever the file holds
    """The requests of a document: {"gen_args_0": {"arg_0": ...}} as lm-eval writes it, or its older plain
    lists."""
    if isinstance(arguments, Mapping):
        return [list(request.values()) for request in arguments.values()]
    return [list(request) for request in arguments]


def _follow_ups(doc: Mapping[str, Any]) -> int:
    """How many of a document's requests, the last ones, were made from its replies (nsa_tasks.follow_up)."""
    count = doc.get("follow_ups")
    return count if isinstance(count, int) and _is_whole(count) else 0


def _settings(requests: list[list[Any]]) -> tuple[str, ...]:
    found = {
        json.dumps(part, sort_keys=True) for request in requests for part in request if isinstance(part, dict)
    }
    return tuple(sorted(found))


def _metrics(record: dict[str, Any]) -> dict[str, float]:
    names = record["metrics"] if isinstance(record.get("metrics"), list) else sorted(set(record) - _FIXED)
    return {
        name: float(record[name])
        for name in names
        if (_is_number(record.get(name)) or isinstance(record.get(name), bool))
        and not of_another_length(name, record[name])
    }


def of_another_length(metric: str, value: float) -> bool:
    """Whether a figure is no score: lm-eval's RULER has a metric for each length, "4096", and marks by -1
    what isn't of that length."""
    return metric.isdecimal() and value == -1


def _replies(requests: list[list[Any]], resps: Any) -> tuple[str, ...]:  # noqa: ANN401 - whatever the file holds
    """All replies of a generation, or the continuation with the highest log-likelihood."""
    first = [resp[0] if isinstance(resp, list) and resp else resp for resp in resps]
    if not first:
        return ()
    if isinstance(first[0], list):
        scores = [float(pair[0]) for pair in first]
        best = max(range(len(scores)), key=scores.__getitem__)
        return (str(requests[best][1]).strip() if len(requests[best]) > 1 else "",)
    return tuple(str(reply) for resp in resps for reply in (resp if isinstance(resp, list) else [resp]))


def _extracted(resps: Any, filtered: Any, replies: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ANN401
    """What a filter made of the replies of a generation; nothing where it only chose among them."""
    first = resps[0] if resps else None
    generated = isinstance(first, str) or (
        isinstance(first, list) and isinstance(next(iter(first), None), str)
    )
    if not generated or not isinstance(filtered, list):
        return ()
    found = tuple(
        str(item) for part in filtered for item in (part if isinstance(part, list | tuple) else [part])
    )
    return () if found == replies[: len(found)] else found


def _text(value: Any) -> str | None:  # noqa: ANN401 - whatever the file holds
    if value is None or value == []:
        return None
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _answers(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - whatever the file holds
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _numbers(value: Any) -> tuple[int, ...]:  # noqa: ANN401 - whatever the file holds
    return tuple(value) if isinstance(value, list) and all(map(_is_whole, value)) else ()


def _list(value: Any) -> list[Any]:  # noqa: ANN401 - whatever the file holds
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> bool:  # noqa: ANN401 - whatever the file holds
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:  # noqa: ANN401 - whatever the file holds
    return isinstance(value, int) and not isinstance(value, bool)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _doc_hash(doc: Any) -> str:  # noqa: ANN401 - whatever the file holds
    # As lm-eval's evaluate() hashes a document.
    return _sha(json.dumps(doc, indent=2, ensure_ascii=False))
