"""What the masked kernels share: who chose what, as bits, and the blocks of a tile one by one."""

import triton
import triton.language as tl

WORD = tl.constexpr(32)
"""Blocks to a word."""
WORDS = 4
"""Words of a row: kernels hold them one by one. In a loop of its own for each word, the compiler would let
no product run beside anything (ptxas says C7515)."""


@triton.jit
def chosen_by_rows(Blocks, tile, row, real, queries, kv_heads, GP: tl.constexpr, BQ: tl.constexpr,
                   COUNT: tl.constexpr, COUNT_P: tl.constexpr):  # fmt: skip
    """The chosen blocks of each row's query [BQ * GP, COUNT_P]; -1 where there is none."""
    slot = tl.arange(0, COUNT_P)
    query = tile.batch.to(tl.int64) * queries + tile.number * BQ + row // GP
    lists = Blocks + (query * kv_heads + tile.kv_head) * COUNT
    keep = real[:, None] & (slot < COUNT)[None, :]
    return tl.load(lists[:, None] + slot[None, :], mask=keep, other=-1)


@triton.jit
def chose(chosen, block):
    """Whether each row chose the block: [R, COUNT_P] -> bool [R]."""
    return tl.sum((chosen == block).to(tl.int32), 1) > 0


@triton.jit
def bits_of(chosen, word):
    """Bit i of a row: it chose block word * 32 + i. [R, COUNT_P] -> int32 [R]."""
    bit = tl.full(chosen.shape, 1, tl.int32) << (chosen & (WORD - 1))
    return tl.sum(tl.where(chosen // WORD == word, bit, 0) & tl.where(chosen >= 0, -1, 0), 1)


@triton.jit
def union_of(bits, below):
    """The bits under `below` that any row has, as one number, and how many they are."""
    place = tl.arange(0, WORD)
    some = tl.max((bits[:, None] >> place[None, :]) & 1, 0)
    some = tl.where(place < below, some, 0)
    return tl.sum(some << place, 0), tl.sum(some, 0)


@triton.jit
def first_word(left0, left1, left2, left3):
    """Number of the first word that is not 0; 3 where the others are."""
    return tl.where(left0 != 0, 0, tl.where(left1 != 0, 1, tl.where(left2 != 0, 2, 3)))


@triton.jit
def pick(word, x0, x1, x2, x3):
    """That of the four which has the number."""
    return tl.where(word == 0, x0, tl.where(word == 1, x1, tl.where(word == 2, x2, x3)))


@triton.jit
def lowest(left):
    """The place of the lowest bit of a number that is not 0."""
    bit = (left & -left).to(tl.uint32, bitcast=True)
    return (bit.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def without_lowest(left, word, here, done):
    """Word number `here` loses its lowest bit if it is `word`, and `done`."""
    return tl.where((word == here) & done, left & (left - 1), left)
