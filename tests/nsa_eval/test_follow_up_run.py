"""A run whose requests follow from replies: its store, its files, its comparison, whoever answers."""

import json
from hashlib import sha256

import pytest

import nsa_eval
from nsa_eval.results import load_run
from nsa_eval.store import ResponseStore
from nsa_tasks.longbench2 import sources

FIELDS = {
    "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short", "answer": "B",
    "choice_A": "a", "choice_B": "b", "choice_C": "c", "choice_D": "d",
}  # fmt: skip
TEMPLATES = {"0shot_cot": "$DOC$ $Q$ Think:", "0shot_cot_ans": "$Q$ $COT$ So:"}


@pytest.fixture
def thinking(tmp_path, monkeypatch, tiny_config):
    """A run of two models that think about three questions, then answer them."""
    folder = tmp_path / "data/longbench/v2"
    (folder / "prompts").mkdir(parents=True)
    for name, text in TEMPLATES.items():
        (folder / f"prompts/{name}.txt").write_text(text, encoding="utf-8")
        monkeypatch.setitem(sources._TEMPLATES, name, sha256(text.encode()).hexdigest())
    rows = [
        {
            **FIELDS,
            "_id": f"r{i}",
            "question": f"Question {i}?",
            "context": f"Text {i}. " * 3,
            "difficulty": ("hard", "hard", "easy")[i],
            "length": ("short", "long", "short")[i],
        }
        for i in range(3)
    ]
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    task = {
        "task": "longbench2_cot", "data_root": str(tmp_path / "data"), "cot_tokens": 8, "new_tokens": 4,
    }  # fmt: skip

    def build(**changes):
        return {**tiny_config(), "tasks": [task], **changes}

    return build


def rows_of(output, model):
    [path] = (output / model).glob("samples_*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_both_requests_are_stored_and_a_second_run_asks_nothing(thinking, tmp_path):
    output = tmp_path / "run"
    nsa_eval.run(thinking(), output=output, progress=False)
    first = rows_of(output, "one")
    assert all(len(row["resps"]) == 2 for row in first)
    for row in first:
        prompts = [request["arg_0"] for request in row["arguments"].values()]
        assert prompts[1] == f"{row['doc']['question']} {row['resps'][0][0].strip()} So:"
    with ResponseStore.open(output / "store/responses.jsonl") as store:
        kept = len(store)
    assert kept == 12
    for path in (output / "one").iterdir():
        path.unlink()
    (output / "one").rmdir()
    nsa_eval.run(thinking(), output=output, progress=False)
    assert rows_of(output, "one") == first
    with ResponseStore.open(output / "store/responses.jsonl") as store:
        assert len(store) == kept


def test_models_with_other_thoughts_are_compared(thinking, tmp_path):
    result = nsa_eval.run(thinking(), output=tmp_path / "run", progress=False)
    one, two = (rows_of(tmp_path / "run", name) for name in ("one", "two"))
    assert [row["resps"][0] for row in one] != [row["resps"][0] for row in two]
    assert result.comparison is not None, result.notes
    [main, *_] = [row for row in result.comparison.rows if row.task == "longbench2_cot"]
    assert main.metric == "overall"


def test_a_class_of_lm_evals_is_asked_twice_too(thinking, tmp_path, tiny_checkpoints):
    models = [{"name": "hf", "path": str(tiny_checkpoints[0]), "lm": "hf"}]
    output = tmp_path / "run"
    nsa_eval.run(thinking(models=models, compare={}), output=output, progress=False)
    for row in rows_of(output, "hf"):
        prompt, again = (request["arg_0"] for request in row["arguments"].values())
        assert prompt.endswith(" Think:")
        assert again == f"{row['doc']['question']} {row['resps'][0][0].strip()} So:"
        assert len(row["resps"]) == 2


def test_the_page_and_the_loaded_samples_hold_both_replies(thinking, tmp_path):
    output = tmp_path / "run"
    nsa_eval.run(thinking(), output=output, progress=False)
    samples = load_run(output).models["one"].tasks["longbench2_cot"].filters["none"]
    assert [len(sample.replies) for sample in samples] == [2, 2, 2]
    assert all(len(sample.settings) == 1 for sample in samples)  # of what both models were asked alike


def test_a_run_that_broke_between_the_two_goes_on_from_the_stored_replies(thinking, tmp_path, monkeypatch):
    from nsa_eval.engine import Engine
    from nsa_eval.errors import UserError

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    nsa_eval.run(thinking(), output=whole, progress=False)
    answer, calls = Engine.generate_until, []

    def breaks(engine, requests, disable_tqdm=False):
        calls.append(len(requests))
        if len(calls) == 2:
            raise UserError("the machine is gone")
        return answer(engine, requests, disable_tqdm)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "generate_until", breaks)
        with pytest.raises(UserError, match="the machine is gone"):
            nsa_eval.run(thinking(), output=broken, progress=False)
    with ResponseStore.open(broken / "store/responses.jsonl") as store:
        assert len(store) == calls[0] == 3
    nsa_eval.run(thinking(), output=broken, progress=False)
    assert rows_of(broken, "one") == rows_of(whole, "one")
    with ResponseStore.open(broken / "store/responses.jsonl") as store:
        assert len(store) == 12


def test_each_column_has_its_own_count_and_place(thinking, tmp_path):
    result = nsa_eval.run(thinking(), output=tmp_path / "run", progress=False)
    scores = {score.metric: score.samples for score in result.models[0].scores}
    columns = {"overall": 3, "easy": 1, "hard": 2, "short": 2, "long": 1, "answered": 3, "extracted": 3}
    assert list(scores.items()) == [(f"{name},none", n) for name, n in columns.items()]
