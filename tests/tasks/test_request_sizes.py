"""Sizes of a task's requests, for estimates: they add up to the task's size, replies have their budget."""

import pytest

from nsa_tasks import families

TASKS = [(family.name, task) for family in families().values() for task in family.tasks]


def resolved(name, task, **given):
    family = families()[name]
    return family, family.resolve(task, given)


@pytest.mark.parametrize(("name", "task"), TASKS, ids=[task for _, task in TASKS])
def test_they_add_up_to_the_tasks_size(name, task):
    family, params = resolved(name, task)
    size, found = family.size(params), family.requests(params)
    if size is None:
        assert found is None
        return
    assert sum(one.documents for one in found) == size.documents
    tokens = sum(one.documents * one.tokens for one in found)
    assert tokens == pytest.approx(size.tokens, rel=0.05, abs=size.documents)
    scored = "nll" in task or name == "ppl"
    assert all((one.new_tokens == 0) == scored for one in found)
    assert all(one.new_tokens < one.tokens for one in found)


@pytest.mark.parametrize(
    ("name", "task", "given", "expected"),
    [
        (
            "needle",
            "needle_single",
            {"lengths": "1k,4k", "depths": 3, "samples": 2},
            [(6, 1024, 16), (6, 4096, 16)],
        ),
        (
            "needle",
            "needle_single",
            {"lengths": "1k", "new_tokens": 50, "depths": 1, "samples": 1},
            [(1, 1024, 50)],
        ),
        ("needle", "needle_single_nll", {"lengths": "1k", "depths": 1, "samples": 1}, [(1, 1024, 0)]),
        ("ruler", "ruler_niah_single_1", {"lengths": "4k", "samples": 5}, [(5, 4096, 128)]),
    ],
)
def test_lengths_and_budgets_are_those_that_are_asked(name, task, given, expected):
    family, params = resolved(name, task, **given)
    assert [tuple(one) for one in family.requests(params)] == expected
