"""Task parameters: what a task takes, and how a given value is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._suggest import closest

K = 1024  # "4k" means 4096 tokens, as in the names of the benchmarks' cells
_MOST_TOKENS = 1 << 32
"""More than any model reads: a slip of the keyboard must not start to build text."""
_MOST_DEPTHS = 1001


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a task family.

    The default is the one in the task's YAML (`metadata`), so that a reader of the YAML sees what will run.
    """

    name: str
    """Name in YAML, in `--metadata` and in `task_spec`."""

    unit: str
    """Unit or kind of value, for `nsa-eval ls tasks`: "tokens", "percent", "samples per cell", ..."""

    help: str
    """One line."""

    read: Callable[[object], Any]
    """Turns a given value into its one plain (JSON) form. Raises ValueError saying what is allowed."""

    write: Callable[[Any], Any] = lambda value: value
    """Turns that form into what a config holds, where people write it shorter: 11 for eleven even depths."""

    parse: Callable[[str], object] = str
    """Turns a flag's text into what a config would hold. Raises ValueError for what no config could hold."""

    scheme: str | None = None
    """Set where a value `SCHEME:PATH` names a file or folder of the user's. Results then carry a hash of its
    content under `SCHEME_hash`, so that the path counts for nothing."""

    bare: bool = False
    """With a scheme: the value is the path itself, under the name `SCHEME_root`, and what is read below it
    stands for its content (`nsa_tasks.data.DATA_ROOT`)."""


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """A parameter as `list_tasks` shows it."""

    name: str
    default: Any
    unit: str
    help: str


def read_parameters(
    task: str, known: Sequence[Parameter], defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Read every parameter of a task: the given value if there is one, else the YAML's default.

    Args:
        task: Task name, for messages.
        known: The parameters that the task takes.
        defaults: The task's YAML metadata.
        given: What the user gave. Every key must be a known parameter.

    Returns:
        All known parameters in their plain form, in the order of `known`.

    Raises:
        TaskParameterError: An unknown name, or a value that its parameter cannot use.
    """
    _refuse_unknown(task, [parameter.name for parameter in known], given)
    values = {}
    for parameter in known:
        values[parameter.name] = _read(task, parameter, given.get(parameter.name, defaults[parameter.name]))
    return values


def write_parameters(task: str, known: Sequence[Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Write given parameters in the one form that a config keeps them in, and leave the others out.

    Args:
        task: Task name, for messages.
        known: The parameters that the task takes.
        given: What the user gave. Every key must be a known parameter.

    Raises:
        TaskParameterError: An unknown name, or a value that its parameter cannot use.
    """
    by_name = {parameter.name: parameter for parameter in known}
    _refuse_unknown(task, list(by_name), given)
    return {name: by_name[name].write(_read(task, by_name[name], value)) for name, value in given.items()}


def _refuse_unknown(task: str, names: Sequence[str], given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in names:
            raise TaskParameterError(
                f"{task}: unknown parameter {name!r}{_hint(str(name), names)}. It takes: {', '.join(names)}."
            )


def _read(task: str, parameter: Parameter, value: object) -> Any:  # noqa: ANN401  (any JSON value)
    try:
        return parameter.read(value)
    except ValueError as error:
        raise TaskParameterError(f"{task}: {parameter.name} = {value!r}: {error}") from None


def pick_parameters(
    task: str, known: Sequence[Parameter], siblings: Sequence[str], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Take a task's own parameters out of lm-eval's metadata.

    lm-eval hands every task the model's arguments (`pretrained`, `dtype`, ...) and `--metadata` in one
    mapping, so other keys are normal there; only one that looks like a misspelt parameter is refused.

    Args:
        task: Task name, for messages.
        known: The parameters that the task takes.
        siblings: Names that other tasks of the run may take (`num_keys` beside `num_values`).
        metadata: The task's merged metadata.

    Raises:
        TaskParameterError: A key that is one or two letters away from a parameter.
    """
    names = [parameter.name for parameter in known]
    picked = {}
    for key, value in metadata.items():
        if key in names:
            picked[key] = value
        elif key not in siblings and (hint := _hint(key, names)):
            raise TaskParameterError(f"{task}: unknown parameter {key!r} in the metadata{hint}.")
    return picked


def _hint(name: str, names: Sequence[str]) -> str:
    near = closest(name, names, strict=True)
    return f" (did you mean {near!r}?)" if near else ""


def read_token_count(value: object) -> int:
    """Read a number of tokens: 4096, "4096", "4k" (k = 1024) or "1m" (1024 * 1024).

    The project's one reader of lengths; the kernels' benchmark, which may import nothing of ours, reads the
    same words.

    Raises:
        ValueError: Anything else, or more tokens than any model reads.
    """
    expected = 'expected a whole number of tokens such as 4096, "4k" or "64k" (k = 1024)'
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(expected)
    if isinstance(value, str):
        text = value.strip().lower()
        factor = {"k": K, "m": K * K}.get(text[-1:], 1)
        digits = text[:-1] if factor > 1 else text
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
            raise ValueError(expected)
        value = int(digits) * factor
    if not 1 <= value <= _MOST_TOKENS:
        raise ValueError(expected)
    return value


def read_lengths(value: object) -> list[int]:
    """Read request lengths: a list of token counts, one count, or "1k,4k"; no length twice."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    elif not isinstance(value, list | tuple):
        value = [value]
    if not value:
        raise ValueError('expected at least one length, such as [1k, 4k] or "1k,4k"')
    lengths = [read_token_count(item) for item in value]
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"a length stands there twice: {lengths}")
    return lengths


def read_depths(value: object) -> list[float]:
    """Read depths: a count (even steps from 0 to 100 percent; 1 is the middle) or a list of percentages.

    As text, "11" is a count, "0,50" and "50%" are percentages.
    """
    expected = (
        "expected a count of depths (such as 11) or a list of percentages from 0 to 100, each once "
        '(one alone: "50%")'
    )
    if isinstance(value, bool):
        raise ValueError(expected)
    if isinstance(value, str):
        try:
            value = parse_depths(value)
        except ValueError:
            raise ValueError(expected) from None
    if isinstance(value, int):
        if not 1 <= value <= _MOST_DEPTHS:
            raise ValueError(expected)
        return _even_depths(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(expected)
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in value):
        raise ValueError(expected)
    depths = [float(item) for item in value]
    if not all(0 <= depth <= 100 for depth in depths) or len(set(depths)) < len(depths):
        raise ValueError(expected)
    return depths


def parse_depths(text: str) -> int | list[float]:
    """Read depths given as text: a whole number is a count; with a comma or % they are percentages.

    Raises:
        ValueError: A word that is no number.
    """
    try:
        numbers = [float(part.strip().removesuffix("%")) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"expected numbers separated by commas, got {text.strip()!r}") from None
    one = "," not in text and "%" not in text and bool(numbers) and numbers[0].is_integer()
    return int(numbers[0]) if one else numbers


def write_depths(depths: list[float]) -> int | list[float]:
    """Write depths as people do: even steps from 0 to 100 percent as their count."""
    return len(depths) if depths == _even_depths(len(depths)) else depths


def _even_depths(count: int) -> list[float]:
    return [50.0] if count == 1 else [round(100 * step / (count - 1), 2) for step in range(count)]


def whole_number(minimum: int, maximum: int) -> Callable[[object], int]:
    """Make a reader of whole numbers in a range (both ends allowed)."""

    def read(value: object) -> int:
        if isinstance(value, str) and len(value) <= 30 and value.strip().removeprefix("-").isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise ValueError(f"expected a whole number from {minimum} to {maximum}")
        return value

    return read


def one_of(*allowed: str) -> Callable[[object], str]:
    """Make a reader of one of a few names."""

    def read(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return str(value)

    return read
