"""The order of a results file's figures: groups before their members, wherever the file has them."""

import pytest

from nsa_eval.results import outlined


@pytest.mark.parametrize(
    ("names", "groups", "expected"),
    [
        (["a", "b"], {}, [("a", 0), ("b", 0)]),
        (
            ["x", "a", "b", "suite"],
            {"suite": ["a", "b"]},
            [("x", 0), ("suite", 0), ("a", 1), ("b", 1)],
        ),
        (
            ["b1", "b2", "a", "inner", "outer"],
            {"outer": ["a", "inner"], "inner": ["b1", "b2"]},
            [("outer", 0), ("a", 1), ("inner", 1), ("b1", 2), ("b2", 2)],
        ),
        # A group without figures is no line, and a task of two groups stands in the first.
        (["a", "b", "two"], {"one": ["a"], "two": ["a", "b"], "b": []}, [("a", 0), ("two", 0), ("b", 1)]),
        (["a", "p", "q"], {"p": ["q"], "q": ["p"]}, [("a", 0), ("p", 0), ("q", 1)]),
    ],
)
def test_groups_stand_before_their_members(names, groups, expected):
    content = {"results": {name: {} for name in names}, "group_subtasks": groups}
    assert outlined(content) == expected
