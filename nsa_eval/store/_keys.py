"""The name under which a response is stored."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any

# Raised when the meaning of a key changes, so that a new version never reads an old version's responses.
_KEY_VERSION = 1


def request_key(
    *,
    context: str,
    request_type: str,
    task: str,
    doc: Mapping[str, Any],
    arguments: tuple[Any, ...],
    repeat: int,
) -> str:
    """Hash everything that a response depends on, and nothing else.

    Order, rank, batch and worker count aren't in it: the same request has the same key wherever it runs.

    Args:
        context: Model fingerprint, dtype, backend and engine settings, as one string.
        request_type: "loglikelihood", "loglikelihood_rolling", "generate_until" or "look".
        task: Name of the task.
        doc: The document that the request was made from.
        arguments: The request itself: (context, continuation), (text,) or (prompt, generation settings).
        repeat: 0 for the first answer to this request, 1 for the second, and so on.

    Returns:
        SHA-256 of the canonical JSON, 64 hex digits.

    Raises:
        TypeError: A document or argument holds a value without a stable text form.
    """
    named = {
        "version": _KEY_VERSION,
        "context": context,
        "type": request_type,
        "task": task,
        "doc": doc,
        "arguments": arguments,
        "repeat": repeat,
    }
    text = json.dumps(_canonical(named), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(value: object) -> object:
    """Plain JSON data in which values that differ stay different (1 and True, "a" and b"a")."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _canonical(item) for key, item in value.items()}
        pairs = [[_canonical(key), _canonical(item)] for key, item in value.items()]
        return {"mapping": sorted(pairs, key=_text)}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return {
            "set": sorted(
                (_canonical(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True)
            )
        }
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, (datetime, date, time)):
        return {"time": value.isoformat()}
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return _canonical(value.tolist())
    if hasattr(value, "tobytes"):  # pictures and other buffers
        return {"bytes": hashlib.sha256(value.tobytes()).hexdigest(), "type": type(value).__name__}
    raise TypeError(
        f"a document or request holds a {type(value).__name__}, which has no stable text form to make a "
        "key from; give text, numbers, lists, dictionaries or bytes"
    )


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)
