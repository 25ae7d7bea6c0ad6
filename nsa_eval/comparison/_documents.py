"""Were two models given the same documents, in the same words, with the same answers to choose from?"""

from collections.abc import Iterable, Mapping, Sequence

from nsa_eval.comparison._mismatch import Mismatch, contrast, shown
from nsa_eval.results import Sample, TaskResult

_PROMPT_CAUSES = ("chat_template", "system_instruction")
_SHOWN_IDS = 5


def document_mismatches(
    left: Sequence[Sample], right: Sequence[Sample], names: tuple[str, str], one: TaskResult, two: TaskResult
) -> list[Mismatch]:
    """Every difference between what two models were given by one filter of a task, a line each.

    Args:
        left: Samples of one model.
        right: Those of the other.
        names: How to call the models.
        one: The task's results of the first, whose settings explain a difference.
        two: Those of the other.
    """
    a, b = _by_document(left), _by_document(right)
    shared = [doc for doc in a if doc in b]
    found = _only_in_one(a, b, len(shared), names, one, two)
    counts = [doc for doc in shared if len(a[doc]) != len(b[doc]) or a[doc][0].repeats != b[doc][0].repeats]
    if counts:
        sizes = [len(side[counts[0]]) * side[counts[0]][0].repeats for side in (a, b)]
        line = contrast(f"samples per document (id {_ids(a, counts)})", sizes[0], sizes[1], names)
        found.append(Mismatch.of(line))
    prompts = _differing(a, b, shared, "prompt_hash")
    if prompts:
        line = f"prompts differ on {len(prompts)} of {len(shared)} shared documents (ids {_ids(a, prompts)})"
        causes, reason = _why_prompts_differ(one, two)
        found.append(Mismatch.of(f"{line}: {reason}", *causes))
    targets = _differing(a, b, shared, "target_hash")
    if targets:
        line = f"expected answers differ on {len(targets)} shared documents (ids {_ids(a, targets)})"
        found.append(Mismatch.of(line))
    settings = [doc for doc in shared if {s.settings for s in a[doc]} != {s.settings for s in b[doc]}]
    if settings:
        values = [" ".join(side[settings[0]][0].settings) for side in (a, b)]
        found.append(Mismatch.of(contrast("generation settings", values[0], values[1], names)))
    known = {*prompts, *settings}
    requests = [doc for doc in _differing(a, b, shared, "requests_hash") if doc not in known]
    if requests:
        line = (
            f"answer choices or continuations differ on {len(requests)} documents (ids {_ids(a, requests)})"
        )
        found.append(Mismatch.of(line))
    return found


def _only_in_one(
    a: Mapping[str, list[Sample]],
    b: Mapping[str, list[Sample]],
    shared: int,
    names: tuple[str, str],
    one: TaskResult,
    two: TaskResult,
) -> list[Mismatch]:
    """Documents that only one model was given; with the reason, where tokenizers make it plain."""
    only_a, only_b = [doc for doc in a if doc not in b], [doc for doc in b if doc not in a]
    if not (only_a or only_b):
        return []
    parts = [
        f"{len(only)} only in {name} (ids {_ids(side, only)})"
        for name, side, only in ((names[0], a, only_a), (names[1], b, only_b))
        if only
    ]
    hint = ""
    if not shared and one.config.get("metadata") and two.config.get("metadata"):
        tokenizers = [(result.config["metadata"] or {}).get("tokenizer") for result in (one, two)]
        if tokenizers[0] != tokenizers[1]:
            hint = "; lengths are counted in each model's own tokens, and their tokenizers differ"
    return [Mismatch.of(f"documents differ: {', '.join(parts)}, {shared} in both{hint}")]


def _why_prompts_differ(one: TaskResult, two: TaskResult) -> tuple[list[str], str]:
    """The settings that made prompts differ, and what to say of them."""
    hashes = {
        cause: [result.context.get(f"{cause}_sha") for result in (one, two)] for cause in _PROMPT_CAUSES
    }
    causes = [cause for cause, (left, right) in hashes.items() if left != right]
    said = [
        f"{cause.replace('_', ' ')} {shown(hashes[cause][0])} / {shown(hashes[cause][1])}" for cause in causes
    ]
    return causes, ", ".join(said) or "template, few-shot examples or chat template differ"


def _by_document(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    documents: dict[str, list[Sample]] = {}
    for sample in samples:
        documents.setdefault(sample.doc_hash, []).append(sample)
    return documents


def _differing(
    a: Mapping[str, list[Sample]], b: Mapping[str, list[Sample]], shared: Iterable[str], field: str
) -> list[str]:
    def values(samples: list[Sample]) -> list[str]:
        return sorted(getattr(sample, field) for sample in samples)

    return [doc for doc in shared if values(a[doc]) != values(b[doc])]


def _ids(side: Mapping[str, list[Sample]], documents: Sequence[str]) -> str:
    first = ", ".join(str(side[doc][0].doc_id) for doc in documents[:_SHOWN_IDS])
    return first + (", ..." if len(documents) > _SHOWN_IDS else "")
