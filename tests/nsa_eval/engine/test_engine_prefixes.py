"""Shared prefixes are found whatever the order, and only those worth a forward of their own are kept."""

import random

import numpy as np
import pytest

from nsa_eval.engine._prefixes import common_prefix, prefix_tree


def tree_of(sequences, **settings):
    given = {"min_saved": 4, "per_sequence": 1, "min_head": 4, **settings}
    return prefix_tree([np.array(sequence, dtype=np.int64) for sequence in sequences], **given)


def shape(node, sequences):
    """(depth, members' tokens, children), without the order of siblings."""
    members = sorted(tuple(sequences[index]) for index in node.members)
    return node.depth, members, sorted(shape(child, sequences) for child in node.children)


def test_common_prefix():
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert common_prefix(np.array([1, 2]), np.array([1, 2, 3])) == 2
    assert common_prefix(np.array([]), np.array([1])) == 0


def test_document_with_questions_with_choices():
    document = [1] * 20
    questions = [[2] * 6, [3] * 6]
    sequences = [document + question for question in questions for _ in range(3)] + [[9] * 5]
    assert shape(tree_of(sequences), sequences) == (
        0,
        [(9,) * 5],
        [(20, [], [(26, [tuple(document + question)] * 3, []) for question in questions])],
    )


def test_short_or_rarely_shared_prefixes_are_not_kept():
    bos = [0]
    sequences = [bos + [number] * 8 for number in range(1, 9)]
    assert tree_of(sequences).children == []  # 7 tokens saved, but for a forward of one token
    pair = [[1, 2, 3, 4, 5], [1, 2, 3, 9, 9]]
    assert tree_of(pair).children == []  # 3 tokens saved
    assert [child.depth for child in tree_of(pair, min_saved=3).children] == [3]


def test_every_sequence_is_below_its_own_prefix():
    pick = random.Random(4)
    sequences = [[pick.choice([1, 2]) for _ in range(pick.randint(1, 40))] for _ in range(200)]
    root = tree_of(sequences, min_saved=2, per_sequence=0, min_head=1)
    assert sorted(root.all_members()) == list(range(200))
    stack = [root]
    while stack:
        node = stack.pop()
        members = [sequences[index][: node.depth] for index in node.all_members()]
        assert all(member == members[0] and len(member) == node.depth for member in members)
        for child in node.children:
            assert child.depth > node.depth
            if child.children:  # so that all caches on a path are a few times the longest at most
                assert child.depth * 3 >= node.depth * 4
        stack.extend(node.children)


def test_order_does_not_matter():
    pick = random.Random(5)
    sequences = [[pick.choice([1, 2, 3]) for _ in range(pick.randint(1, 12))] for _ in range(60)]
    expected = shape(tree_of(sequences), sequences)
    for _ in range(3):
        pick.shuffle(sequences)
        assert shape(tree_of(sequences), sequences) == expected


@pytest.mark.parametrize("size", [3000])
def test_deeply_nested_prefixes_do_not_meet_the_recursion_limit(size):
    root = tree_of([[1] * length for length in range(1, size)], min_saved=1, per_sequence=0, min_head=1)
    assert len(root.all_members()) == size - 1


def test_a_prefix_before_long_rests_ends_at_a_step():
    """Rests of four steps and more: the prefix is cut to a multiple; before a short rest it stays whole."""

    def tree(rest):
        heads = [np.concatenate([np.arange(45), np.full(rest, 100 + tail)]) for tail in range(3)]
        return prefix_tree(heads, min_saved=1, per_sequence=1, min_head=1, step=10)

    [child] = tree(40).children
    assert (child.depth, child.all_members()) == (40, [0, 1, 2])
    assert [child.depth for child in tree(30).children] == [45]
