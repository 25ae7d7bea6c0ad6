"""Groups of our own in a run: members are jobs, lm-eval aggregates, a comparison shows groups first."""

import json
import sys

import pytest

import nsa_eval
import nsa_tasks
from nsa_eval._tasks import load_tasks
from nsa_eval.catalog import list_tasks
from nsa_eval.config import load_config
from nsa_eval.errors import ConfigError
from nsa_eval.plan import make_plan
from nsa_tasks._yaml import group_files, task_files

SUITE = """
group: suite
task: [needle_single, {task: needle_multikey, metadata: {num_keys: 2, samples: 3}}]
aggregate_metric_list: [{metric: score, aggregation: mean, weight_by_size: false}]
metadata: {version: 1.0, family: suite, protocol: own, summary: Needles}
"""
OUTER = """
group: outer
task:
  - suite
  - {task: sums, num_fewshot: 2, generation_kwargs: {max_gen_toks: 5, until: ["#"]}}
  - {task: numbers, num_fewshot: 1}
aggregate_metric_list: [{metric: score, aggregation: mean, weight_by_size: false}]
metadata: {version: 2.0}
"""
SUMS = """
task: sums
custom_dataset: !function sums.documents
output_type: generate_until
test_split: test
fewshot_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match}]
"""
NUMBERS = """
group: numbers
task:
  - sums_more
aggregate_metric_list: [{metric: exact_match, aggregation: mean}]
"""
CODE = """
import datasets

def documents(**_):
    rows = [{"question": f"{i} + {i}?", "answer": str(2 * i)} for i in range(4)]
    return {"test": datasets.Dataset.from_list(rows)}
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A folder of the package with two groups, and one of the user's with lm-eval tasks."""
    folder, theirs = tmp_path / "package" / "suite", tmp_path / "theirs"
    folder.mkdir(parents=True)
    theirs.mkdir()
    for name, text in (("__init__.py", ""), ("suite.yaml", SUITE), ("outer.yaml", OUTER)):
        (folder / name).write_text(text)
    for name, text in (
        ("sums.py", CODE),
        ("sums.yaml", SUMS),
        ("more.yaml", SUMS.replace("task: sums", "task: sums_more")),
        ("numbers.yaml", NUMBERS),
    ):
        (theirs / name).write_text(text)
    monkeypatch.setattr(nsa_tasks, "__path__", [*nsa_tasks.__path__, str(folder.parent)])
    task_files.cache_clear()
    group_files.cache_clear()
    yield str(theirs)
    sys.modules.pop("nsa_tasks.suite", None)
    task_files.cache_clear()
    group_files.cache_clear()


@pytest.fixture
def config(suite, tiny_config):
    def build(*tasks, models=2, **changes):
        made = tiny_config(tasks=list(tasks), include_path=[suite], **changes)
        made["models"] = made["models"][:models]
        if models == 1:
            del made["compare"]
        return made

    return build


SHORT = {"lengths": [320], "depths": 2, "samples": 1, "new_tokens": 8}


def test_a_groups_entry_is_planned_as_its_members(config):
    resolved = load_config(config({"task": "suite", **SHORT, "num_keys": 3, "limit": 1}, seed=7))
    assert [task.task for task in resolved.tasks] == ["suite"]
    single, multikey = make_plan(resolved).of("one")
    plain = single.params.plain()
    assert (plain["lengths"], plain["samples"], plain["seed"]) == ([320], 1, 7)
    assert multikey.params.num_keys == 3  # the entry's own goes before the group's
    assert (single.samples, single.task.limit) == (1, 1)
    [_, plain] = make_plan(load_config(config({"task": "suite", "lengths": [256]}))).of("one")
    assert (plain.params.num_keys, plain.params.samples) == (2, 3)


def test_a_member_has_the_id_and_the_responses_of_an_entry_of_its_own(config):
    grouped = make_plan(load_config(config({"task": "suite", **SHORT}))).of("one")
    alone = make_plan(load_config(config({"task": "needle_single", **SHORT}))).of("one")
    assert grouped[0].id == alone[0].id


def test_scores_of_groups_stand_before_their_members_in_results_and_comparison(config, tmp_path):
    entry = {"task": "outer", **SHORT, "limit": 2}
    result = nsa_eval.run(config(entry), output=tmp_path / "run", progress=False)
    content = result.models[0].results
    assert content["group_subtasks"] == {
        "outer": ["suite", "sums", "numbers"],
        "suite": ["needle_single", "needle_multikey"],
        "numbers": ["sums_more"],
    }
    scores = {name: found.get("score,none") for name, found in content["results"].items()}
    assert scores["suite"] == (scores["needle_single"] + scores["needle_multikey"]) / 2
    assert content["versions"]["outer"] == 2.0 or content["versions"]["outer"] == "2.0"
    sums = content["configs"]["sums"]
    assert (sums["num_fewshot"], sums["generation_kwargs"]["max_gen_toks"]) == (2, 5)
    assert content["configs"]["sums_more"]["num_fewshot"] == 1  # through a group of lm-eval's
    sources = content["config"]["task_sources"]
    assert {"suite.yaml", "outer.yaml", "needle_single.yaml"} <= set(sources["needle_single"])
    assert [(row.task, row.depth) for row in result.comparison.rows if row.metric == "score"] == [
        *(("outer", 0), ("suite", 1), ("needle_single", 2), ("needle_multikey", 2)),
    ]
    samples = sorted(p.name.split("_20")[0] for p in (tmp_path / "run" / "one").glob("samples_*"))
    assert samples == [
        "samples_needle_multikey",
        "samples_needle_single",
        "samples_sums",
        "samples_sums_more",
    ]


def test_a_changed_group_makes_its_results_old(config, suite, tmp_path):
    made = config({"task": "suite", **SHORT}, models=1)
    nsa_eval.run(made, output=tmp_path / "run", progress=False)
    nsa_eval.run(made, output=tmp_path / "run", progress=False)
    file = tmp_path / "package" / "suite" / "suite.yaml"
    file.write_text(SUITE.replace("version: 1.0", "version: 1.1"))
    with pytest.raises(nsa_eval.UserError, match=r"task needle_single: suite\.yaml has changed since"):
        nsa_eval.run(made, output=tmp_path / "run", progress=False)


def test_a_task_of_two_groups_runs_once_if_both_ask_the_same(config):
    plain = {"task": "outer", **SHORT}
    again = {"task": "suite", **SHORT}
    resolved = load_config(config(plain, again))
    assert [job.task.label for job in make_plan(resolved).of("one")] == [
        *("needle_single", "needle_multikey", "sums", "numbers"),
    ]
    loaded = load_tasks(resolved.models[0], make_plan(resolved).of("one"), resolved)
    assert next(iter(loaded.groups)) == "outer"
    for other in ({**again, "lengths": [352]}, {"task": "needle_single", **SHORT, "lengths": [352]}):
        with pytest.raises(
            ConfigError, match=r"needle_single is asked for elsewhere with other settings: give"
        ):
            load_config(config(plain, other))
    aliased = load_config(config({"task": "suite", **SHORT}, {"task": "suite", **SHORT, "alias": "again"}))
    assert [job.task.label for job in make_plan(aliased).of("one")] == [
        *("needle_single", "needle_multikey", "again_needle_single", "again_needle_multikey"),
    ]
    loaded = load_tasks(aliased.models[0], make_plan(aliased).of("one"), aliased)
    assert {name: group.child_names for name, group in loaded.groups.items()} == {
        "suite": ["needle_single", "needle_multikey"],
        "again": ["again_needle_single", "again_needle_multikey"],
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"task": "suite", "length": 1}, "tasks[0].length: unknown key; did you mean 'lengths'?"),
        ({"task": "suite", "lengths": ["x"]}, "tasks[0].lengths: expected a whole number of tokens"),
        ({"task": "suite", "num_fewshot": 2}, "tasks[0].num_fewshot: needle_single has no solved examples"),
        ({"task": "suite", "metadata": {"a": 1}}, "tasks[0].metadata: suite takes its parameters as keys"),
        ({"task": "outer", "alias": "b"}, "tasks[0].alias: sums is one of lm-eval's tasks"),
        ({"task": "suit"}, "tasks[0].task: no task is named 'suit'; did you mean 'suite'?"),
    ],
)
def test_mistakes_of_a_groups_entry_are_told_once_and_at_its_key(config, entry, message):
    with pytest.raises(ConfigError) as caught:
        load_config(config(entry))
    assert message in str(caught.value)
    assert len(set(str(caught.value).splitlines())) == len(str(caught.value).splitlines())


def test_a_mistake_of_the_groups_own_names_member_and_key(config, tmp_path):
    file = tmp_path / "package" / "suite" / "suite.yaml"
    file.write_text(SUITE.replace("num_keys: 2", "num_keys: 0"))
    with pytest.raises(ConfigError, match="needle_multikey: num_keys: expected a whole number"):
        load_config(config({"task": "suite", **SHORT}))


def test_a_groups_parameters_are_kept_in_one_spelling(config):
    resolved = load_config(config({"task": "suite", "lengths": "256,", "depths": "0,50,100"}))
    assert json.loads(json.dumps(resolved.tasks[0].params)) == {"lengths": [256], "depths": 3}


def test_groups_are_listed_first(suite):
    kinds = [entry.kind.startswith("group of ") for entry in list_tasks()]
    assert kinds == sorted(kinds, reverse=True)
    assert kinds[0]


def test_files_of_one_name_are_told_apart_in_a_tasks_sources(tmp_path):
    from nsa_eval._sources import _by_name

    paths = [tmp_path / "a" / "test.jsonl", tmp_path / "b" / "test.jsonl", tmp_path / "x.yaml"]
    assert _by_name([*paths, paths[0]]) == dict(
        zip(("test.jsonl", "b/test.jsonl", "x.yaml"), paths, strict=True)
    )
