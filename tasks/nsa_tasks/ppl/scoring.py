"""From log-likelihoods to nats a token and bits a byte."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def scores(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Score one document, over its whole window and in each bucket (lm-eval's `process_results`).

    `nll` is in nats a token, `bits_per_byte` in bits a byte of UTF-8 (which compares models of different
    tokenizers). `NAME@E` is the same over the tokens of the bucket that ends at E alone.

    Args:
        doc: Has `buckets`, and of each its `tokens` and `bytes`.
        results: Of each bucket its log-likelihood in nats, and whether greedy decoding gives it.
    """
    nats = [-float(value) for value, _ in results]
    whole = math.fsum(nats) / sum(doc["tokens"])
    found: dict[str, Any] = {
        "nll": whole,
        "bits_per_byte": _bits(math.fsum(nats), sum(doc["bytes"])),
        # In a list, so that nobody takes its plain mean: `perplexity` below is made of all documents.
        "perplexity": [whole],
    }
    for end, value, tokens, size in zip(doc["buckets"], nats, doc["tokens"], doc["bytes"], strict=True):
        found[f"nll@{end}"] = value / tokens
        found[f"bits_per_byte@{end}"] = _bits(value, size)
    return found


def perplexity(items: Sequence[Sequence[float]]) -> float:
    """Exponential of the mean over documents of their nats a token."""
    return math.exp(math.fsum(item[0] for item in items) / len(items))


def metric_list(ends: Sequence[int]) -> list[dict[str, Any]]:
    """The metrics as a task's configuration lists them, the main one first."""
    names = ["nll", "bits_per_byte"]
    names += [f"{name}@{end}" for name in names for end in ends]
    found = [{"metric": name, "aggregation": "mean", "higher_is_better": False} for name in names]
    return [
        *found[:2],
        {"metric": "perplexity", "aggregation": perplexity, "higher_is_better": False},
        *found[2:],
    ]


def _bits(nats: float, size: int) -> float:
    return nats / math.log(2) / size
