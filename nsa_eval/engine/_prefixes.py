"""Which token prefixes many requests share, and which of those are worth computing once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]

# Steps that a rest has at least where its prefix is rounded: it reads at most a quarter more then.
_LONG_REST = 4


@dataclass(slots=True)
class Node:
    """A prefix of `depth` tokens and what hangs below it."""

    depth: int
    children: list[Node] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    """Sequences that go on from this prefix directly, by their index."""

    def all_members(self) -> list[int]:
        """Every sequence below this prefix."""
        found: list[int] = []
        stack = [self]
        while stack:
            node = stack.pop()
            found.extend(node.members)
            stack.extend(node.children[::-1])
        return found


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Length of the longest common prefix of two token arrays."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def prefix_tree(
    prefixes: Sequence[Tokens],
    *,
    min_saved: int,
    per_sequence: int,
    min_head: int,
    least: int = 1,
    step: int = 1,
) -> Node:
    """Arrange sequences below the prefixes that they share.

    Args:
        prefixes: Of each sequence, the part that may be shared.
        min_saved: A prefix is kept when sharing it saves at least so many tokens: its length beyond the
            prefix above it, times the sequences below it less one.
        per_sequence: And at least so many for each of these sequences, as going on from a cache costs
        something.
        min_head: Tokens by which a prefix that leads to further ones must exceed the one above. Such prefixes
            are read one at a time, and a lone BOS isn't worth it.
        least: No prefix of fewer tokens is kept (`Reader.first_forward`).
        step: A prefix that only long rests follow ends at a multiple of so many tokens: each rest reads a few
            more, and the sizes that kernels meet are few.

    Returns:
        The root (depth 0). What comes from one document stays together, in the order of the tokens, so the
        tree doesn't depend on the order of the sequences.
    """
    # Big-endian bytes sort as the token ids do, and compare much faster than lists.
    order = sorted(range(len(prefixes)), key=lambda i: prefixes[i].astype(">u4").tobytes())
    root = Node(0)
    path = [root]
    for place, index in enumerate(order):
        shared = common_prefix(prefixes[order[place - 1]], prefixes[index]) if place else 0
        last = None
        while path[-1].depth > shared:
            last = path.pop()
        if path[-1].depth < shared:
            # The branch point lies inside the edge to `last`: split it there.
            between = Node(shared)
            assert last is not None
            path[-1].children[-1] = between
            between.children.append(last)
            path.append(between)
        if len(prefixes[index]) > path[-1].depth:
            leaf = Node(len(prefixes[index]))
            path[-1].children.append(leaf)
            path.append(leaf)
        path[-1].members.append(index)
    _prune(root, min_saved, per_sequence, least)
    _thin(root, min_head)
    if step > 1:
        _round(root, prefixes, step)
    return root


def _prune(root: Node, min_saved: int, per_sequence: int, least: int) -> None:
    """Drop prefixes that aren't worth to be read once."""
    sizes = _sizes(root)

    def worth(node: Node, child: Node) -> bool:
        size = sizes[id(child)]
        saved = (child.depth - node.depth) * (size - 1)
        return child.depth >= least and saved >= max(min_saved, per_sequence * size)

    _keep(root, worth)


def _thin(root: Node, min_head: int) -> None:
    """Drop prefixes that lead to further ones and are little longer than the one above.

    While a prefix is worked on, the caches of all those above it stay in memory; with each a third longer
    than the one above, they take no more than four times the longest.
    """

    def apart(node: Node, child: Node) -> bool:
        return not child.children or child.depth >= max(node.depth + min_head, node.depth * 4 / 3)

    _keep(root, apart)


def _keep(root: Node, wanted: Callable[[Node, Node], bool]) -> None:
    """Give what hangs below a prefix that isn't wanted to the one above, from the top down.

    Args:
        root: Always kept.
        wanted: Asked with a prefix that is kept and one below it.
    """
    # An explicit stack: a document with a thousand nested prefixes must not meet Python's recursion limit.
    stack = [root]
    while stack:
        node = stack.pop()
        kept: list[Node] = []
        pending = node.children[::-1]
        while pending:
            child = pending.pop()
            if wanted(node, child):
                kept.append(child)
            else:
                node.members.extend(child.members)
                pending.extend(child.children[::-1])
        node.children = kept
        stack.extend(kept)


def _round(root: Node, prefixes: Sequence[Tokens], step: int) -> None:
    """End prefixes at multiples of `step`, where every sequence below goes on for some steps more."""
    stack = [root]
    while stack:
        node = stack.pop()
        for child in node.children:
            rest = min(len(prefixes[index]) for index in child.all_members()) - child.depth
            rounded = child.depth // step * step
            if rest >= _LONG_REST * step and rounded > node.depth:
                child.depth = rounded
        stack.extend(node.children)


def _sizes(root: Node) -> dict[int, int]:
    """Sequences below each prefix, by the node's id."""
    sizes: dict[int, int] = {}
    stack = [(root, False)]
    while stack:
        node, seen = stack.pop()
        if seen:
            sizes[id(node)] = len(node.members) + sum(sizes[id(child)] for child in node.children)
        else:
            stack.append((node, True))
            stack.extend((child, False) for child in node.children)
    return sizes
