"""The scalar types of a config: lengths, limits, batch sizes, seeds, names.

Each is read by a validator that says what it was given and what it takes, instead of a union whose error
message would list every branch.
"""

from __future__ import annotations

import pkgutil
import re
from datetime import date
from typing import Annotated, Any

from pydantic import BeforeValidator

from nsa_tasks import closest, read_token_count

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@,-]*")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
LONGEST_NAME = 80
_MOST_SAMPLES = 1_000_000_000
"""More than any data set has."""
_MOST_ROWS = 1_000_000
_MOST_TOKENS = 2**32
_DEFAULT_SEEDS = (0, 1234, 1234, 1234)
"""lm-eval's own defaults for its python, numpy, torch and few-shot seeds."""


def parse_length(value: object) -> int:
    """Read a length in tokens: `512`, `"1k"` (1024) or `"1m"` (1,048,576).

    Args:
        value: What the config or command line gave.

    Returns:
        Tokens, at least 1.

    Raises:
        ValueError: Neither a whole number above 0 nor one with a k or m behind it.
    """
    try:
        return read_token_count(value)
    except ValueError:
        raise ValueError(f"expected a length in tokens such as 512 or 4k (= 4096), got {value!r}") from None


def _name(value: object) -> str:
    if isinstance(value, str) and len(value) <= LONGEST_NAME and _NAME.fullmatch(value):
        return value
    raise ValueError(
        f"expected a name of letters, digits, '.', '_' and '-' (it becomes part of file names), got {value!r}"
    )


def _budget(value: object) -> Any:  # noqa: ANN401  (int | str | list[int | str])
    if not isinstance(value, list):
        return _one_budget(value)
    budgets = [_one_budget(item) for item in value]
    if not budgets or len(set(budgets)) < len(budgets):
        raise ValueError(
            f"expected a budget in tokens or in % of each prompt, or a list of them, each once, got {value!r}"
        )
    return budgets


def _one_budget(value: object) -> int | str:
    """Tokens; or a share of each prompt, in one spelling: 10.0 % is "10%"."""
    match = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return parse_length(value)
    if not 0 < float(match[1]) <= 100:
        raise ValueError(f"expected a share above 0 and up to 100 % of each prompt, got {value!r}")
    return f"{float(match[1]):g}%"


def variant_name(value: object) -> str:
    """Check the name of a variant, which may hold `+`, `=`, `@` and `,` too.

    Raises:
        ValueError: It can't become part of file names.
    """
    if isinstance(value, str) and len(value) <= LONGEST_NAME and _VARIANT.fullmatch(value):
        return value
    raise ValueError(
        "expected a name of letters, digits and . _ - + = @ , of up to 80 characters (it becomes part of "
        f"file names), got {value!r}"
    )


def _limit(value: object) -> int | float:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_SAMPLES:
        return value
    if isinstance(value, float) and (0 < value < 1 or (1 <= value <= _MOST_SAMPLES and value.is_integer())):
        return value if value < 1 else int(value)
    raise ValueError(
        "expected a number of samples (1, 2, ...) or a fraction of them between 0 and 1, got "
        f"{_shown(value, _MOST_SAMPLES)}"
    )


def _shown(value: object, most: int) -> str:
    """The value; where it is a number above the largest, that one too."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value > most:
        return f"{value:.3g} (at most {most:,})" if abs(value) < 1e300 else f"a number above {most:,}"
    return repr(value)


def _executor_kind(value: object) -> str:
    import nsa_eval.executors as package  # which imports configs itself

    found = pkgutil.iter_modules(package.__path__)
    kinds = [module.name for module in found if not module.name.startswith("_")]
    if isinstance(value, str) and value in kinds:
        return value
    near = closest(str(value), kinds)
    hint = f"; did you mean {near!r}?" if near else ""
    raise ValueError(f"expected {' or '.join(kinds)}, got {value!r}{hint}")


def _batch_size(value: object) -> Any:  # noqa: ANN401  (int | "auto")
    if value == "auto" or (
        isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_ROWS
    ):
        return value
    raise ValueError(f"expected auto or a number of rows (1, 2, ...), got {_shown(value, _MOST_ROWS)}")


def _prefill_chunk(value: object) -> Any:  # noqa: ANN401  (int | "auto")
    if value == "auto" or (
        isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_TOKENS
    ):
        return value
    raise ValueError(f"expected auto or a number of tokens (1, 2, ...), got {_shown(value, _MOST_TOKENS)}")


def _chat_template(value: object) -> bool | str:
    if isinstance(value, bool) or (isinstance(value, str) and value):
        return value
    raise ValueError(f"expected true, false or the name of one of the tokenizer's templates, got {value!r}")


def _day(value: object) -> str:
    try:
        if isinstance(value, str) and len(value) == 10:
            return date.fromisoformat(value).isoformat()
    except ValueError:
        pass
    raise ValueError(f"expected a day such as 2026-01-31, got {value!r}")


def _seeds(value: object) -> Any:  # noqa: ANN401  (tuple of four)
    def is_seed(v: object) -> bool:
        return isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**32

    if value is None:
        return _DEFAULT_SEEDS
    if is_seed(value):
        return (value,) * 4
    if isinstance(value, list | tuple) and len(value) == 4 and all(v is None or is_seed(v) for v in value):
        return tuple(value)
    raise ValueError(
        "expected a whole number from 0 to 4294967295, or four of them [python, numpy, torch, few-shot] "
        f"(null leaves one unset), got {value!r}"
    )


def _document_length(value: object) -> int:
    return 0 if value in (0, "0") and not isinstance(value, bool) else parse_length(value)


Length = Annotated[int, BeforeValidator(parse_length)]
"""Tokens: a whole number, or text such as 4k."""
DocumentLength = Annotated[int, BeforeValidator(_document_length)]
"""The same of a document's context, which may be none: BABILong's 0k."""
Name = Annotated[str, BeforeValidator(_name)]
"""A name that may become part of a file name."""
Budget = Annotated[int | str | list[int | str], BeforeValidator(_budget)]
"""KV tokens, or a share of each prompt such as 10%: one budget, or a list of them."""
VariantName = Annotated[str, BeforeValidator(variant_name)]
"""A variant's name, which may become part of a file name."""
Limit = Annotated[int | float, BeforeValidator(_limit)]
"""Samples of a task: a count, or a fraction below 1 (as in lm-eval)."""
BatchSize = Annotated[Any, BeforeValidator(_batch_size)]
"""Rows: a whole number, or `auto`."""
PrefillChunk = Annotated[Any, BeforeValidator(_prefill_chunk)]
"""Tokens of one forward: a whole number, or `auto`."""
ExecutorKind = Annotated[str, BeforeValidator(_executor_kind)]
"""An executor: the name of a file in nsa_eval/executors/."""
ChatTemplate = Annotated[bool | str, BeforeValidator(_chat_template)]
"""Whether to apply the tokenizer's chat template, or the name of one of several."""
Day = Annotated[str, BeforeValidator(_day)]
"""A date, as YEAR-MONTH-DAY."""
Seeds = Annotated[tuple[int | None, int | None, int | None, int | None], BeforeValidator(_seeds)]
"""Seeds of python, numpy, torch and the few-shot sampler."""
