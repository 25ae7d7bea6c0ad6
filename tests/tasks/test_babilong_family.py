"""BABILong's twenty tasks and two groups: the same defaults, and labels that say what is not official."""

import pytest

from nsa_tasks import group_of, resolve
from nsa_tasks.babilong.family import FAMILY, protocol
from nsa_tasks.babilong.scoring import LABELS

TASKS = [f"babilong_qa{number}" for number in range(1, 21)]


def test_the_tasks_differ_in_name_and_summary_alone():
    assert sorted(FAMILY.tasks) == sorted(TASKS)
    assert len({FAMILY.metadata(task)["summary"] for task in TASKS}) == 20
    rest = [{k: v for k, v in FAMILY.metadata(task).items() if k != "summary"} for task in TASKS]
    assert all(one == rest[0] for one in rest)


@pytest.mark.parametrize("task", TASKS)
def test_the_protocol_in_the_yaml_is_that_of_its_defaults(task):
    params = resolve(task)
    assert FAMILY.metadata(task)["protocol"] == protocol(params, gpt2=False)
    assert params.qa in LABELS


@pytest.mark.parametrize(
    ("given", "gpt2", "label"),
    [
        ({"count": "gpt2"}, True, "official"),
        ({"count": "model"}, True, "official"),  # a model whose tokens are GPT-2's
        ({"count": "gpt2", "background": "generated"}, True, "official (background not PG-19)"),
        ({"prompt": "lm-eval", "count": "gpt2"}, True, "official rule, lm-eval's wording"),
        ({}, False, "official (lengths in the model's tokens)"),
    ],
)
def test_what_is_not_official_is_said(given, gpt2, label):
    assert protocol(resolve("babilong_qa1", given), gpt2=gpt2) == label


@pytest.mark.parametrize(("name", "count"), [("babilong", 5), ("babilong_all", 20)])
def test_groups_count_their_tasks_alike(name, count):
    group = group_of(name)
    assert [leaf.task for leaf in group.leaves()] == TASKS[:count]
    assert [one["weight_by_size"] for one in group.aggregates] == [False]


def test_a_plan_knows_contexts_and_about_their_prompts():
    size = FAMILY.size(resolve("babilong_qa1", {"lengths": "0k,1k,4k", "samples": 10}))
    assert size.documents == 30
    assert size.tokens == 10 * (700 + 3700) + 30 * (320 + 20)
