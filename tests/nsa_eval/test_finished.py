"""What counts as finished: results of the checkpoint, task, data and text that are there now."""

import json
import os
import shutil
from pathlib import Path

import pytest

import nsa_eval
from nsa_eval._sources import _of_lm_eval
from nsa_eval.errors import UserError

YAML = """
task: mine
include: base_yaml.yaml
doc_to_text: "Q: {{question}}"
dataset_kwargs: {data_files: {test: FOLDER/rows.json}}
"""
BASE = """
dataset_path: json
output_type: generate_until
test_split: test
doc_to_target: !function code.target
metric_list: [{metric: exact_match}]
generation_kwargs: {max_gen_toks: 2, until: ["."]}
"""


@pytest.fixture
def config(tiny_config, tiny_checkpoints, tmp_path):
    """One model with a checkpoint of its own, a task of the user's and one over a text of the user's."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text(YAML.replace("FOLDER", str(folder)))
    (folder / "base_yaml.yaml").write_text(BASE)
    (folder / "code.py").write_text("def target(doc):\n    return 'a'\n")
    (folder / "rows.json").write_text("\n".join(json.dumps({"question": f"q{n}"}) for n in range(3)))
    (folder / "other.yaml").write_text("task: other\n")
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("The mill ground corn all day. The river ran on by the town. " * 60)
    checkpoint = shutil.copytree(tiny_checkpoints[0], tmp_path / "ckpt")
    return tiny_config(
        models=[{"name": "one", "path": str(checkpoint)}],
        tasks=[
            {"task": "mine"},
            {"task": "needle_single", "lengths": [256], "depths": 1, "samples": 1, "new_tokens": 4,
             "haystack": f"text:{text}"},
        ],
        compare={},
        include_path=[str(folder)],
    )  # fmt: skip


def run(config, home, **options):
    return nsa_eval.run(config, output=home, progress=False, **options)


def prompts(home, task="mine"):
    [file] = (home / "one").glob(f"samples_{task}_*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line["arguments"]["gen_args_0"]["arg_0"] for line in lines]


def stored(home):
    lines = (home / "store" / "responses.jsonl").read_text().splitlines()
    return sum(len(json.loads(line)) for line in lines)


def edit(path: Path, old: str, new: str):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


CHANGES = {
    "its YAML": ("tasks/mine.yaml", "Q: ", "Question: ", "task mine: mine.yaml has changed since", 3),
    "what it includes": ("tasks/base_yaml.yaml", "toks: 2", "toks: 3", "base_yaml.yaml has changed since", 3),
    "its code": ("tasks/code.py", "'a'", "'b'", "task mine: code.py has changed since", 0),
    "its data": ("tasks/rows.json", "q1", "p1", "task mine: rows.json has changed since", 1),
    "its text": ("text/a.txt", "river", "water", "task needle_single: text has changed since", 1),
    "the config": ("ckpt/config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05', "the config in", 4),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_told_and_overwrite_makes_it_anew(config, tmp_path, what):
    file, old, new, said, asked = CHANGES[what]
    home = tmp_path / "run"
    run(config, home)
    assert stored(home) == 4
    before = sorted((home / "one").iterdir())
    edit(tmp_path / file, old, new)
    with pytest.raises(UserError, match="--overwrite") as caught:
        run(config, home)
    assert said in str(caught.value)
    assert str(caught.value).count("since") == 1  # nothing else is blamed
    assert sorted((home / "one").iterdir()) == before
    run(config, home, overwrite=True)
    assert stored(home) == 4 + asked  # what is asked as before is answered from the store
    again = run(config, home)
    assert stored(home) == 4 + asked
    assert again.models[0].scores
    if what == "its YAML":
        assert prompts(home)[0].startswith("Question: ")


def test_a_config_of_the_same_size_with_its_old_time_is_no_finished_model(config, tmp_path):
    home, file = tmp_path / "run", tmp_path / "ckpt" / "config.json"
    run(config, home)
    stat = file.stat()
    edit(file, '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match=r"one: the config in .* has changed since"):
        run(config, home)


def test_files_of_other_tasks_and_a_moved_folder_change_nothing(config, tmp_path):
    home = tmp_path / "run"
    first = run(config, home)
    (tmp_path / "tasks" / "other.yaml").write_text("task: other\ndoc_to_text: x\n")
    (tmp_path / "ckpt" / "README.md").write_text("# A card\n")
    assert run(config, home).models == first.models
    recorded = first.models[0].results["config"]["task_sources"]
    assert set(recorded["mine"]) == {"mine.yaml", "base_yaml.yaml", "code.py", "rows.json"}
    assert set(recorded["needle_single"]) == {"needle_single.yaml", "_needle.yaml", "text"}


def test_members_of_a_group_count(config, tmp_path):
    (tmp_path / "tasks" / "group.yaml").write_text("group: ours\ntask: [mine]\n")
    config["tasks"] = [{"task": "ours"}]
    home = tmp_path / "run"
    run(config, home)
    edit(tmp_path / "tasks" / "mine.yaml", "Q: ", "Question: ")
    with pytest.raises(UserError, match=r"task ours: mine\.yaml has changed since"):
        run(config, home)


def test_results_of_an_older_version_that_recorded_no_sources_stay_finished(config, tmp_path):
    home = tmp_path / "run"
    run(config, home)
    [file] = (home / "one").glob("results_*.json")
    content = json.loads(file.read_text())
    for key in ("task_sources", "model_fingerprints"):
        del content["config"][key]
    file.write_text(json.dumps(content))
    edit(tmp_path / "tasks" / "mine.yaml", "Q: ", "Question: ")
    run(config, home)
    assert prompts(home)[0].startswith("Q: ")


@pytest.mark.parametrize("content", ["{}", '{"results": {}, "configs": {}}', '{"results": 1, "configs": 2}'])
def test_a_results_file_without_results_is_no_finished_model(config, tmp_path, content):
    home = tmp_path / "run"
    run(config, home)
    [file] = (home / "one").glob("results_*.json")
    file.write_text(content)
    result = run(config, home)
    assert stored(home) == 4
    assert {score.task for score in result.models[0].scores} == {"mine", "needle_single"}


def test_yaml_that_repeats_itself_is_looked_at_once(tmp_path):
    """Nine levels of ten aliases are a thousand million texts."""
    levels = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "deep.yaml").write_text("task: deep\n" + "\n".join(levels) + "\ndataset_kwargs: *a9\n")
    assert [path.name for path in _of_lm_eval("deep", [tmp_path])] == ["deep.yaml"]
