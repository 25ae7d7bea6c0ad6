"""LongBench in a run: the cut follows the model's window, and the page says what was measured."""

import json
from pathlib import Path

import pytest

import nsa_eval
from nsa_eval._tasks import load_tasks
from nsa_eval.config import load_config
from nsa_eval.plan import make_plan
from nsa_tasks.longbench.cut import default_limit

for package in ("jieba", "rouge", "fuzzywuzzy"):
    pytest.importorskip(package)

NAMES = ("hotpotqa", "lcc_e")


@pytest.fixture
def root(tmp_path):
    """Three short records of two datasets, one in each column of LongBench-E."""
    folder = tmp_path / "data/longbench/v1"
    folder.mkdir(parents=True)
    for name in NAMES:
        records = [
            {
                "_id": f"{name}-{n}",
                "input": f"Who is {n}?",
                "context": f"Ann is {n}. " * 20,
                "answers": ["Ann"],
                "length": 3000 + 3000 * n,
                "all_classes": None,
            }
            for n in range(3)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path / "data"


def config(tiny_config, root, **task):
    common = {"data_root": str(root), "gen_kwargs": {"max_gen_toks": 4}, **task}
    tasks = [{"task": "lb_hotpotqa", **common}, {"task": "lb_e_lcc", **common}]
    return tiny_config(tasks=tasks)


def test_prompts_are_cut_by_the_window_that_the_config_gives(tiny_config, root):
    given = config(tiny_config, root)
    given["models"][0]["max_length"] = 4096
    resolved = load_config(given)
    declared = json.loads((Path(given["models"][1]["path"]) / "config.json").read_text())
    for model, limit in zip(
        resolved.models, (3500, default_limit(declared["max_position_embeddings"])), strict=True
    ):
        loaded = load_tasks(model, make_plan(resolved).of(model.name), resolved)
        for task in loaded.tasks.values():
            assert task.config.metadata["max_prompt_tokens"] == limit
        assert loaded.truncations == dict.fromkeys(loaded.tasks, "error")


def test_a_run_compares_columns_and_says_the_cut(tiny_config, root, tmp_path):
    nsa_eval.run(config(tiny_config, root, max_prompt_tokens=64), output=tmp_path / "run")
    [file] = (tmp_path / "run" / "one").glob("results_*.json")
    scores = json.loads(file.read_text())["results"]["lb_e_lcc"]
    assert {"score,none", "0-4k,none", "4-8k,none", "8k+,none"} <= set(scores)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "middle, over 64 tokens: 3 of 3 cut" in page
    assert "middle, over 64 tokens: 3 of 3 cut" in (tmp_path / "run/tables/scores.md").read_text()
    assert "8k+" in page
