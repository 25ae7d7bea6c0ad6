"""A member of a group that is one of lm-eval's tasks, on local records, through a whole run."""

import json

import pytest

import nsa_eval
import nsa_tasks
from nsa_tasks._yaml import group_files, load_task_yaml, task_files

ROW = {"context": "Passage: They had 12.5 tons.\nQuestion: How many tons?\nAnswer:", "ref_text": "12.5|13"}


@pytest.fixture
def one_of_the_nine(tmp_path, monkeypatch):
    """A group with the general group's DROP alone: the others are made the same way."""
    text = (nsa_tasks.TASKS_DIR / "general" / "general_text.yaml").read_text(encoding="utf-8")
    head, _, members = text.partition("\ntask:\n")
    drop = members[members.index("  - task: drop") : members.index("metadata:")]
    folder = tmp_path / "package" / "few"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    head = head.replace("group: general_text", "group: few")
    (folder / "few.yaml").write_text(f"{head}\ntask:\n{drop}metadata: {{version: 1.0}}\n", encoding="utf-8")
    assert [one["task"] for one in load_task_yaml(folder / "few.yaml", resolve=False)["task"]] == ["drop"]
    data = tmp_path / "data" / "general"
    data.mkdir(parents=True)
    for name, count in (("dev", 2), ("train", 3)):
        rows = [
            {**ROW, "context": ROW["context"].replace("tons?", f"tons on day {i}?")} for i in range(count)
        ]
        (data / f"drop_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("NSA_EVAL_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(nsa_tasks, "__path__", [*nsa_tasks.__path__, str(folder.parent)])
    task_files.cache_clear()
    group_files.cache_clear()
    yield
    task_files.cache_clear()
    group_files.cache_clear()


@pytest.mark.slow  # lm-eval's index of 14,000 YAML files
def test_lm_evals_task_runs_on_local_records_with_the_groups_settings(one_of_the_nine, tiny_config, tmp_path):
    made = tiny_config(tasks=[{"task": "few", "gen_kwargs": {"max_gen_toks": 4}}])
    made["models"] = made["models"][:1]
    del made["compare"]
    result = nsa_eval.run(made, output=tmp_path / "run", progress=False)
    config = result.models[0].results["configs"]["drop"]
    assert config["num_fewshot"] == 1
    assert config["generation_kwargs"]["until"] == ["\n"]
    assert config["metadata"]["protocol"] == "lm-eval, examples and stop mended"
    assert config["metadata"]["data_hash"].startswith("data:")
    assert result.models[0].results["n-samples"]["drop"]["original"] == 2
    [samples] = (tmp_path / "run").glob("*/samples_drop_*.jsonl")
    row = json.loads(samples.read_text().splitlines()[0])
    assert row["arguments"]["gen_args_0"]["arg_0"].count(" 12.5\n\n") == 1
    assert len(row["new_tokens"]) == 1
