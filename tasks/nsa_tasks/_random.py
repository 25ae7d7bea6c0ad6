"""Random draws that are the same on every machine and Python version.

`hash()` is salted per process, and `random.choice`, `sample` and `shuffle` may change between Python
versions; `random.random()` for an integer seed may not (it is documented to stay). Everything here is built
on that one function and SHA-256.
"""

import hashlib
import random
import uuid
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def derive_seed(*parts: int | float | str) -> int:
    """Derive a seed from anything that has a stable text form.

    Args:
        *parts: What the seed depends on, such as (seed, task, length, depth index, sample).

    Returns:
        A whole number below 2**63, so that it fits a signed 64-bit column.
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Draw:
    """A stream of draws that belongs to one purpose of one sample."""

    def __init__(self, *parts: int | float | str) -> None:
        """Start the stream of `derive_seed(*parts)`."""
        # Not for secrets: a benchmark has to draw the same sample again.
        self.unit = random.Random(derive_seed(*parts)).random

    def below(self, n: int) -> int:
        """Draw a whole number in [0, n)."""
        return int(self.unit() * n)

    def choice(self, items: Sequence[T]) -> T:
        """Draw one item."""
        return items[int(self.unit() * len(items))]

    def digits(self, n: int) -> str:
        """Draw a number of n digits that does not start with 0."""
        low = 10 ** (n - 1)
        return str(low + self.below(9 * low))

    def uuid4(self) -> str:
        """Draw a version-4 uuid in its 36-character form."""
        bits = 0
        for _ in range(4):
            bits = bits << 32 | self.below(1 << 32)
        return str(uuid.UUID(int=bits, version=4))
