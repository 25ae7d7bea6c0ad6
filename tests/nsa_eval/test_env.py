"""env.json: what a run ran on."""

import json

from nsa_eval.env import describe


def test_it_is_plain_data_with_what_a_reader_needs():
    env = describe(seeds=(0, None, 2, 3), command=["nsa-eval", "run", "x.yaml"])
    assert json.loads(json.dumps(env)) == env
    assert env["command"] == ["nsa-eval", "run", "x.yaml"]
    assert env["seeds"] == {"python": 0, "numpy": None, "torch": 2, "fewshot": 3}
    assert env["started"].endswith("+00:00")
    assert {"python", "torch", "transformers", "lm-eval"} <= set(env["versions"])
    assert env["machine"]["cpu"]
    assert env["machine"]["cores"] >= 1


def test_a_folder_that_is_no_checkout_has_no_commit(tmp_path, monkeypatch):
    from nsa_eval.env import _git

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert _git(tmp_path) is None


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert describe()["git"] is None
