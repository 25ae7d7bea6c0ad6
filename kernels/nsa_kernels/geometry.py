"""The block grid of Native Sparse Attention (arXiv 2502.11089, section 3.3), and which blocks it forces."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGeometry:
    """Sizes of the blocks, all in tokens but for `select_count`; the defaults are the paper's.

    The grid starts at the first token of a sequence: compression block i covers the tokens
    [i*stride, i*stride + block), selection block j covers [j*select_block, (j+1)*select_block).

    Raises:
        ValueError: A size is not a positive integer, the stride does not divide both kinds of block, or
            fewer blocks are selected than are forced (`first_blocks` alone may be 0).
    """

    block: int = 32
    """l: tokens that one compressed key stands for."""
    stride: int = 16
    """d: tokens from one compression block to the next; divides `block` and `select_block`."""
    select_block: int = 64
    """l': tokens in one selection block."""
    select_count: int = 16
    """n: selection blocks that a token attends to, the forced ones included."""
    window: int = 512
    """w: tokens in the sliding window, the token itself included."""
    first_blocks: int = 1
    """Selection blocks from the sequence's start on that every token selects (the paper's section 4.1: 1)."""
    last_blocks: int = 2
    """Blocks that every token selects up to its own, which is one of them (the paper: 2)."""

    def __post_init__(self) -> None:
        """Checks the sizes."""
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "first_blocks" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                kind = "a positive integer" if least else "an integer from 0 on"
                raise ValueError(f"{field.name} must be {kind}, got {value!r}")
        for name in ("block", "select_block"):
            value = getattr(self, name)
            if value % self.stride:
                raise ValueError(
                    f"stride must divide {name}: {value} is no multiple of {self.stride}; "
                    f"choose a stride out of the divisors of {value}"
                )
        if self.select_count < self.forced_blocks:
            raise ValueError(
                f"select_count must be at least {self.forced_blocks} (the first {self.first_blocks} and, "
                f"with the token's own block, the last {self.last_blocks} are always selected), "
                f"got {self.select_count}"
            )

    @property
    def forced_blocks(self) -> int:
        """Blocks that a token selects whatever their importance, where so many start at or before it."""
        return self.first_blocks + self.last_blocks

    @property
    def forces_as_paper(self) -> bool:
        """Block 0, the token's own and the one before it: the rule that the Triton kernels are made for."""
        return (self.first_blocks, self.last_blocks) == (1, 2)

    @property
    def reach(self) -> int:
        """Tokens up to which the selected branch sees everything: n * l'."""
        return self.select_count * self.select_block

    def num_select_blocks(self, length: int) -> int:
        """Selection blocks that start within `length` tokens; the last may be incomplete."""
        return -(-length // self.select_block)


def num_blocks(length: int, geometry: BlockGeometry) -> int:
    """Complete compression blocks in a sequence of `length` tokens: max(0, (length - l) // d + 1)."""
    return max(0, (length - geometry.block) // geometry.stride + 1)
