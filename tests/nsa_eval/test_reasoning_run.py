"""A run with several replies to a problem: from the config to samples, comparison and page."""

import json

import pytest

pytest.importorskip("math_verify", reason="pip install 'nsa-eval[reasoning]'")

import nsa_eval
from nsa_eval.errors import UserError
from nsa_eval.material import Material
from nsa_eval.material._samples import side_by_side
from nsa_eval.results import load_run

PROBLEMS = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(1, 4)]


@pytest.fixture
def reasoning(tiny_config, tmp_path):
    def build(**entry):
        path = tmp_path / "data" / "reasoning" / "aime_2024.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
        plain = {"task": "reasoning_aime24", "data_root": str(tmp_path / "data"), "budget": 6, "replies": 3}
        return tiny_config(tasks=[plain | entry])

    return build


def test_replies_reach_samples_comparison_and_page(reasoning, tmp_path):
    result = nsa_eval.run(reasoning(), output=tmp_path / "run", progress=False)
    run = load_run(tmp_path / "run")
    samples = run.models["one"].tasks["reasoning_aime24"].filters["none"]
    assert len(samples) == 3
    for sample in samples:
        assert len(sample.replies) == len(sample.new_tokens) == len(sample.votes) == sample.repeats == 3
        assert len(set(sample.replies)) > 1  # drawn apart
        assert sample.finished == tuple(length < 6 for length in sample.new_tokens)
    rows = {row.metric: row for row in result.comparison.rows}
    assert list(rows) == ["avg@3", "pass@2", "pass@3", "maj@2", "maj@3"]
    assert rows["avg@3"].n == 3  # problems, not replies
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert '<section id="replies">' in page
    assert "own prompt, 3 replies, T 0.7, top-p 0.95, 6 tokens" in page
    [shown, *_] = side_by_side("reasoning_aime24", Material(run).models, ("avg@3", "none"))
    assert any("cut by their budget" in note for reply in shown.replies for note in reply.notes)


def test_a_run_that_goes_on_writes_the_same_samples(reasoning, tmp_path):
    def samples():
        [path] = (tmp_path / "run" / "one").glob("samples_*.jsonl")
        return path.read_bytes()

    nsa_eval.run(reasoning(), output=tmp_path / "run", progress=False)
    before = samples()
    for path in (tmp_path / "run" / "one").iterdir():
        path.unlink()
    nsa_eval.run(reasoning(), output=tmp_path / "run", progress=False)
    assert samples() == before


def test_a_longer_budget_is_another_run_under_an_alias(reasoning, tmp_path):
    made = reasoning()
    made["tasks"].append(made["tasks"][0] | {"alias": "longer", "budget": 8})
    made["models"] = made["models"][:1]
    del made["compare"]
    result = nsa_eval.run(made, output=tmp_path / "run", progress=False)
    configs = result.models[0].results["configs"]
    assert configs["reasoning_aime24"]["generation_kwargs"]["max_gen_toks"] == 6
    assert configs["longer"]["generation_kwargs"]["max_gen_toks"] == 8


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"repeats": 2}, "set replies = 2 in the task's parameters"),
        ({"gen_kwargs": {"max_gen_toks": 4}}, "gen_kwargs change max_gen_toks: set budget"),
    ],
)
def test_a_second_way_to_say_it_is_refused(reasoning, tmp_path, entry, message):
    with pytest.raises((UserError, nsa_eval.UserError, ValueError), match=message):
        nsa_eval.run(reasoning(**entry), output=tmp_path / "run", progress=False)
