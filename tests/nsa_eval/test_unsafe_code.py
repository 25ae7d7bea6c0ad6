"""Code that a model writes runs only where somebody said so, and asked before weights are read."""

import json

import pytest

import nsa_eval
from nsa_eval.errors import UserError
from nsa_tasks import TaskDataError

PROBLEM = {
    "task_id": "HumanEval/0", "prompt": "def double(x):\n", "entry_point": "double",
    "test": "def check(f):\n    f(1)\n", "canonical_solution": "    return 2 * x\n",
}  # fmt: skip


@pytest.fixture
def code(tiny_config, tmp_path):
    def build(**changes):
        path = tmp_path / "data" / "general" / "humaneval.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(PROBLEM) + "\n")
        entry = {
            "task": "general_humaneval",
            "data_root": str(tmp_path / "data"),
            "gen_kwargs": {"max_gen_toks": 4},
        }
        made = tiny_config(tasks=[entry], **changes)
        made["models"] = made["models"][:1]
        del made["compare"]
        return made

    return build


def test_a_run_asks_first(code, tmp_path):
    with pytest.raises(UserError, match=r"general_humaneval runs code .* --confirm_run_unsafe_code"):
        nsa_eval.run(code(), output=tmp_path / "run", progress=False)


def test_a_confirmed_run_has_a_score(code, tmp_path):
    result = nsa_eval.run(code(confirm_run_unsafe_code=True), output=tmp_path / "run", progress=False)
    assert result.models[0].results["results"]["general_humaneval"]["pass@1,none"] in (0.0, 1.0)
    [samples] = (tmp_path / "run").glob("*/samples_general_humaneval_*.jsonl")
    row = json.loads(samples.read_text())
    assert row["new_tokens"][0] <= 4
    assert row["finished"] == [row["new_tokens"][0] < 4]


def test_the_flag_is_lm_evals(code, tmp_path, capsys):
    from nsa_eval.cli import main

    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(code()))
    codes = []
    for flags in ([], ["--confirm_run_unsafe_code"]):
        with pytest.raises(SystemExit) as ended:
            main(["run", str(path), "-o", str(tmp_path / "run"), "-q", *flags])
        codes.append(ended.value.code)
    assert codes == [2, 0]
    assert "--confirm_run_unsafe_code" in capsys.readouterr().err


def test_missing_problems_are_told_with_their_file(code, tmp_path):
    made = code(confirm_run_unsafe_code=True)
    (tmp_path / "data" / "general" / "humaneval.jsonl").unlink()
    with pytest.raises((UserError, TaskDataError), match=r"no .*humaneval\.jsonl"):
        nsa_eval.run(made, output=tmp_path / "run", progress=False)
