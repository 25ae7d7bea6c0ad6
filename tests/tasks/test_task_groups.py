"""Groups of tasks: lm-eval's own YAML, read as lm-eval reads it."""

import sys

import pytest
from lm_eval.tasks import TaskManager

import nsa_tasks
from nsa_tasks import (
    TASKS_DIR,
    GroupMember,
    TaskGroup,
    TaskParameterError,
    families,
    group_of,
    is_own,
    list_groups,
    list_tasks,
    normal,
    parameters_of,
    portable,
    resolve,
)
from nsa_tasks._yaml import group_files, load_task_yaml, task_files

SUITE = """
group: suite
group_alias: The suite
task:
  - needle_single
  - {task: needle_multikey, metadata: {num_keys: 2}}
  - suite_theirs
aggregate_metric_list: [{metric: score, aggregation: mean, weight_by_size: false}]
metadata: {version: 1.0, family: suite, protocol: own, summary: Needles and more}
"""
THEIRS = """
group: suite_theirs
task:
  - {task: gsm8k, num_fewshot: 8, generation_kwargs: {max_gen_toks: 512}}
  - {group: pair, task: [mmlu, {task: drop, num_fewshot: 1}]}
num_fewshot: 5
metadata: {version: 1.0}
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Groups in a folder of the package; nothing names them anywhere else."""
    folder = tmp_path / "suite"
    folder.mkdir()
    for name, text in (("__init__.py", ""), ("suite.yaml", SUITE), ("suite_theirs.yaml", THEIRS)):
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(nsa_tasks, "__path__", [*nsa_tasks.__path__, str(tmp_path)])
    task_files.cache_clear()
    group_files.cache_clear()
    yield folder
    sys.modules.pop("nsa_tasks.suite", None)
    task_files.cache_clear()
    group_files.cache_clear()


def test_a_groups_members_have_its_settings_and_their_own(suite):
    group = group_of("suite")
    assert (group.name, group.alias, group.metadata["protocol"]) == ("suite", "The suite", "own")
    single, multikey, theirs = group.members
    assert single == GroupMember(task="needle_single", settings={}, params={})
    assert multikey == GroupMember(task="needle_multikey", settings={}, params={"num_keys": 2})
    assert isinstance(theirs, TaskGroup)
    gsm8k, pair = theirs.members
    assert gsm8k.settings == {"num_fewshot": 8, "generation_kwargs": {"max_gen_toks": 512}}
    assert pair.name == "suite_theirs::pair"
    assert [(leaf.task, leaf.settings) for leaf in pair.leaves()] == [
        ("mmlu", {"num_fewshot": 5}),
        ("drop", {"num_fewshot": 1}),
    ]
    assert [leaf.task for leaf in group.leaves()] == [
        *("needle_single", "needle_multikey", "gsm8k", "mmlu", "drop"),
    ]
    assert group.files == (suite / "suite.yaml", suite / "suite_theirs.yaml")


def test_a_group_is_no_task_and_its_folder_need_not_be_a_family(suite):
    assert "suite" not in {info.name for info in list_tasks()}
    assert {info.name: (info.family, info.description) for info in list_groups()}["suite"] == (
        "suite",
        "Needles and more (5 tasks)",
    )
    assert [is_own(name) for name in ("suite", "needle_single", "gsm8k")] == [True, True, False]
    assert group_of("needle_single") is None
    (suite / "suite.yaml").write_text(SUITE.replace("protocol: own, ", ""))
    assert {info.name: info.protocol for info in list_groups()}["suite"] == "classic / lm-eval"
    assert "suite" not in families()


def test_a_groups_parameters_are_those_of_its_members(suite, tmp_path):
    known = parameters_of("suite")
    assert known["lengths"][1] == "needle_single"
    assert known["num_keys"][1] == "needle_multikey"
    assert normal("suite", {"lengths": "1k", "num_keys": "3"}) == {"lengths": [1024], "num_keys": 3}
    (tmp_path / "a.txt").write_text("One.")
    path = f"text:{tmp_path}/../{tmp_path.name}/a.txt"
    assert portable("suite", {"haystack": path}) == {"haystack": f"text:{tmp_path}/a.txt"}
    with pytest.raises(
        TaskParameterError, match=r"suite: unknown parameter 'length' .did you mean 'lengths'"
    ):
        normal("suite", {"length": 1})


def test_lm_eval_reads_the_same_group(suite, byte_tokenizer):
    (suite / "suite_theirs.yaml").unlink()
    (suite / "suite.yaml").write_text(SUITE.replace("  - suite_theirs\n", ""))
    metadata = {"tokenizer": byte_tokenizer, "lengths": [512], "depths": 1, "samples": 1}
    manager = TaskManager(
        include_defaults=False, include_path=[str(TASKS_DIR), str(suite)], metadata=metadata
    )
    loaded = manager.load("suite")
    assert list(loaded["tasks"]) == ["needle_single", "needle_multikey"]
    assert loaded["tasks"]["needle_multikey"].params.num_keys == 2
    assert loaded["groups"]["suite"].has_aggregation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("group: suite\ntask: needle_single\n", r"suite\.yaml: task: expected a list of the group's members"),
        ("group: suite\ntask: []\n", r"suite\.yaml: task: expected a list"),
        ("group: suite\ntask: [{num_fewshot: 1}]\n", r"a member is a name, or a mapping with .task: NAME."),
        ("group: suite\ntask: [suite]\n", "the group suite holds itself"),
    ],
)
def test_a_group_that_cannot_be_read_is_told(suite, text, message):
    (suite / "suite.yaml").write_text(text)
    with pytest.raises(TaskParameterError, match=message):
        group_of("suite")


EVERY = sorted(group_files())


@pytest.mark.parametrize("name", EVERY)
class TestEveryGroup:
    """What holds for each group that there is: a new one is tested by being there."""

    def test_it_is_described_as_a_task_is(self, name):
        metadata = group_of(name).metadata
        assert {"version", "summary"} <= set(metadata)
        folder = group_files()[name].parent.name
        assert metadata.get("family", folder) == folder

    def test_its_members_exist_once(self, name):
        from nsa_eval.catalog import lm_eval_tasks

        leaves = [leaf.task for leaf in group_of(name).leaves()]
        assert len(leaves) == len(set(leaves))
        assert set(leaves) <= set(task_files()) | lm_eval_tasks()

    def test_a_member_has_one_of_the_metrics_that_it_aggregates(self, name):
        group = group_of(name)
        wanted = {entry["metric"] for entry in group.aggregates}
        for leaf in group.leaves() if wanted else ():
            if leaf.task in task_files():
                config = load_task_yaml(task_files()[leaf.task], resolve=False)
                assert wanted & {entry["metric"] for entry in config["metric_list"]}, leaf.task

    def test_its_members_parameters_can_be_resolved(self, name):
        for leaf in group_of(name).leaves():
            if leaf.task in task_files():
                resolve(leaf.task, leaf.params)
