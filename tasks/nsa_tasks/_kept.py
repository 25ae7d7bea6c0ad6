"""Documents made before, for models that count tokens alike: a long grid's take minutes of a core."""

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from nsa_tasks._tokens import RequestTokens
from nsa_tasks.family import Params

Row = dict[str, Any]

_MOST_CHARACTERS = 2**28
"""Of all texts that are kept: a quarter of a gigabyte, a dozen grids of 220 documents up to 64k tokens."""

_rows: OrderedDict[tuple[str, ...], tuple[list[Row], int]] = OrderedDict()


def documents(
    params: Params,
    hashes: dict[str, str],
    tokens: RequestTokens,
    build: Callable[[RequestTokens], list[Row]],
    *,
    characters: Callable[[Row], int] = lambda row: len(row["input"]),
) -> list[Row]:
    """Build a task's documents, or take those that equal parameters, files and tokenizer gave before.

    Args:
        params: The task's, all that `build` depends on beside the next two.
        hashes: Of the local files that it reads.
        tokens: Counts a request's tokens.
        build: Makes the documents.
        characters: Of a document's text.

    Returns:
        Rows of the caller's own; what their fields hold is not to be changed.
    """
    counted = tokens.identity()
    if counted is None:
        return build(tokens)
    asked = {"task": params.task, "parameters": params.plain(), "files": hashes}
    key = (type(params).__qualname__, json.dumps(asked, sort_keys=True), *counted)
    if key not in _rows:
        rows = build(tokens)
        _rows[key] = rows, sum(map(characters, rows))
        while len(_rows) > 1 and sum(size for _, size in _rows.values()) > _MOST_CHARACTERS:
            _rows.popitem(last=False)
    _rows.move_to_end(key)
    return [dict(row) for row in _rows[key][0]]
