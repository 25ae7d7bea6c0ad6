"""What the reasoning tasks take."""

from collections.abc import Callable
from dataclasses import dataclass

from nsa_tasks._parameters import Parameter, read_token_count, whole_number
from nsa_tasks.data import DATA_ROOT
from nsa_tasks.family import Params

MOST_REPLIES = 1024
"""To a problem: sixteen times what DeepSeek-R1's evaluation draws, and no slip of the keyboard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningParams(Params):
    """Resolved parameters of a reasoning task."""

    budget: int
    """Most tokens of a reply."""
    replies: int
    """To each problem, n."""
    temperature: float
    """0 is greedy."""
    top_p: float
    k: tuple[int, ...]
    """Of pass@k and maj@k: above 1 and at most n."""
    prompt: str
    """plain, lm-eval, or file:PATH."""
    data_root: str
    """Folder of local records; empty: the environment's, else the hub."""

    @property
    def label(self) -> str:
        """Whose prompt, and how replies are drawn: what decides whether two scores may be compared."""
        prompt = {"plain": "own prompt", "lm-eval": "lm-eval's prompt"}.get(self.prompt, "prompt of a file")
        replies = "1 reply" if self.replies == 1 else f"{self.replies} replies"
        drawn = f"T {self.temperature:g}, top-p {self.top_p:g}" if self.temperature else "greedy"
        return f"{prompt}, {replies}, {drawn}, {self.budget:,} tokens"


def automatic_k(replies: int) -> tuple[int, ...]:
    """2, 4, 8, ... and n itself; none for a single reply."""
    powers = [1 << exponent for exponent in range(1, replies.bit_length())]
    return tuple(dict.fromkeys([*powers, *([replies] if replies > 1 else [])]))


def _number(low: float, high: float, *, or_low: bool) -> Callable[[object], float]:
    def read(value: object) -> float:
        try:
            found = float(value) if isinstance(value, int | float | str) else float("nan")
        except ValueError:
            found = float("nan")
        inside = (low <= found if or_low else low < found) and found <= high
        if isinstance(value, bool) or not inside:
            raise ValueError(f"expected a number {'from' if or_low else 'above'} {low:g} to {high:g}")
        return found

    return read


def _read_k(value: object) -> list[int] | str:
    if value == "auto":
        return "auto"
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    one = whole_number(2, MOST_REPLIES)
    listed = value if isinstance(value, list | tuple) else [value]
    try:
        found = [one(item) for item in listed]
    except ValueError:
        found = []
    if len(set(found)) < len(listed):
        raise ValueError(
            'expected "auto" (2, 4, 8, ... and n) or a list of whole numbers from 2 to '
            f"{MOST_REPLIES}, each once"
        )
    return sorted(found)


def _read_prompt(value: object) -> str:
    if isinstance(value, str) and (
        value in ("plain", "lm-eval") or (value.startswith("file:") and value[5:].strip())
    ):
        return value
    raise ValueError(
        "expected plain, lm-eval, or file:PATH with a text that holds {problem}, such as file:prompt.txt"
    )


PARAMETERS = (
    Parameter(
        name="budget",
        unit="tokens",
        help="most tokens of a reply, thinking included; k = 1024",
        read=read_token_count,
    ),
    Parameter(
        name="replies",
        unit="per problem",
        help="replies to each problem, n",
        read=whole_number(1, MOST_REPLIES),
    ),
    Parameter(
        name="temperature",
        unit="number",
        help="of the draws; 0 is greedy, and then replies is 1",
        read=_number(0, 10, or_low=True),
    ),
    Parameter(
        name="top_p",
        unit="number",
        help="only the likeliest tokens that together reach this probability",
        read=_number(0, 1, or_low=False),
    ),
    Parameter(
        name="k",
        unit="replies",
        help="of pass@k and maj@k; auto = 2, 4, 8, ... and n",
        read=_read_k,
    ),
    Parameter(
        name="prompt",
        unit="name",
        help="wording: plain (own) | lm-eval (its task's) | file:PATH (a text with {problem})",
        read=_read_prompt,
        scheme="file",
    ),
    DATA_ROOT,
)
"""Of every reasoning task."""
