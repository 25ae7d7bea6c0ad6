"""Rows packed one behind another, whose keys and values lie in blocks that any number of rows may share.

A forward over T tokens of several rows leaves a `Block`: the keys and values of those tokens, which nothing
changes afterwards. A row is a list of `Span`s of blocks. So a prefix is kept once, whoever goes on from it;
a row is copied by copying its list; and there is no padding anywhere. This is the prefix tree of
RadixAttention (arXiv 2312.07104) with attention to shared parts in one go for all rows that share them, as in
Hydragen (arXiv 2402.05099).
"""

from nsa_models.packed._blocks import Block, Chain, Span
from nsa_models.packed._prefill import PackedForward
from nsa_models.packed._slots import PackedSlots

__all__ = ["Block", "Chain", "PackedForward", "PackedSlots", "Span"]
