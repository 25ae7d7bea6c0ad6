"""JSON files that may have been cut or edited since they were written: read, or said to be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nsa_eval.errors import UserError


def parse_json(text: str) -> Any:  # noqa: ANN401 - whatever it holds
    """Parse JSON text.

    Raises:
        ValueError: It is none, or more than can be read (nested thousands deep, a number of thousands of
            digits); the message says it in a few words.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in line {error.lineno}, character {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError:
        raise ValueError("a number of thousands of digits") from None


def read_json(path: Path, advice: str) -> Any:  # noqa: ANN401 - whatever the file holds
    """Read a JSON file.

    Args:
        path: The file.
        advice: What to do if it is damaged.

    Raises:
        UserError: It can't be read, or isn't JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read ({error}). {advice}") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged, expected JSON ({error}). {advice}") from error


def read_mapping(path: Path, advice: str) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Raises:
        UserError: It can't be read, isn't JSON, or holds something else.
    """
    content = read_json(path, advice)
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise UserError(f"{path}: damaged, expected a mapping, got {kind}. {advice}")
    return content
