"""Finished requests are never asked again, and a resumed run ends as an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from nsa_eval.engine import Engine
from nsa_eval.store import ResponseStore


def forwards(model):
    """Counts the model's forwards."""
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(1))
    return seen


def test_stored_run_never_runs_the_model(tokenizer, toys, tmp_path):
    scores, replies = toys.choice_requests(), toys.reply_requests()
    rolling = [toys.request_of("loglikelihood_rolling", (toys.make_text(1, 30),))]
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        engine = Engine(toys.make_model("llama"), tokenizer, store=store, truncation="left", max_length=64)
        first = (
            engine.loglikelihood(scores),
            engine.generate_until(replies),
            engine.loglikelihood_rolling(rolling),
        )
        assert engine.from_store == 0
        audit = engine.audit
    assert audit
    model = toys.make_model("llama")
    seen = forwards(model)
    counts = []
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        engine = Engine(
            model, tokenizer, store=store, truncation="left", max_length=64, on_response=counts.append
        )
        again = (
            engine.loglikelihood(scores),
            engine.generate_until(replies),
            engine.loglikelihood_rolling(rolling),
        )
    assert again == first
    assert not seen
    assert engine.audit == audit  # a resumed run reports the same
    assert sum(counts) == engine.answered == engine.from_store == len(scores) + len(replies) + len(rolling)


def test_only_what_is_missing_is_computed(tokenizer, toys, tmp_path):
    requests = toys.choice_requests()
    expected = Engine(toys.make_model("llama"), tokenizer).loglikelihood(requests)
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        Engine(toys.make_model("llama"), tokenizer, store=store).loglikelihood(requests[10:20])
        asked = []
        put = store.put_many
        store.put_many = lambda responses: asked.extend(responses) or put(responses)
        engine = Engine(toys.make_model("llama"), tokenizer, store=store)
        found = engine.loglikelihood(requests)
    assert len(asked) == len(set(asked)) == len(requests) - 10
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_another_context_asks_again(tokenizer, toys, tmp_path):
    requests = toys.reply_requests()[:2]
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        for context in ("one model", "another"):
            engine = Engine(toys.make_model("llama"), tokenizer, store=store, store_context=context)
            engine.generate_until(requests)
            assert engine.from_store == 0
        assert len(store) == 4


def test_progress_counts_every_request_once(llama, tokenizer, toys):
    counts = []
    engine = Engine(llama, tokenizer, on_response=counts.append)
    requests = toys.choice_requests()
    engine.loglikelihood([*requests, *requests[:3]])  # equal requests are computed once and answered all
    assert sum(counts) == len(requests) + 3
    engine.generate_until(toys.reply_requests())
    assert sum(counts) == engine.answered == len(requests) + 3 + 9


def test_what_was_computed_before_a_failure_is_stored(tokenizer, toys, tmp_path):
    model = toys.make_model("llama")
    requests = toys.choice_requests()
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        engine = Engine(model, tokenizer, store=store, batch_size=2, share_prefixes=False)
        engine._answerer.loaded.reader()
        calls = []

        def break_later(module, given):
            calls.append(1)
            if len(calls) == 5:
                with torch.no_grad():
                    model.lm_head.weight.fill_(float("nan"))

        hook = model.model.register_forward_pre_hook(break_later)
        with pytest.raises(Exception, match="aren't finite"):
            engine.loglikelihood(requests)
        hook.remove()
        assert len(store) >= 8


TASK = """
    task: toy_choice
    dataset_path: json
    dataset_kwargs: {{data_files: {{test: "{data}"}}}}
    test_split: test
    output_type: multiple_choice
    doc_to_text: "{{{{question}}}}"
    doc_to_target: 0
    doc_to_choice: ["{{{{a}}}}", "{{{{b}}}}"]
    metric_list: [{{metric: acc}}]
"""
SCRIPT = """
    import json, os, signal, sys
    from pathlib import Path
    import lm_eval, torch
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from nsa_eval.engine import Engine
    from nsa_eval.store import ResponseStore

    folder, kill_after = Path(sys.argv[1]), int(sys.argv[2])
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    store = ResponseStore.open(folder / sys.argv[3] / "responses.jsonl")

    def count(new):
        if engine.answered - engine.from_store >= kill_after > 0:
            os.kill(os.getpid(), signal.SIGKILL)

    engine = Engine(model, tokenizer, store=store, on_response=count, batch_size=4)
    found = lm_eval.simple_evaluate(
        model=engine, tasks=["toy_choice", "toy_reply"],
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )
    print(json.dumps([engine.from_store, found["results"], found["samples"]], default=str, sort_keys=True))
"""
REPLY = """
    task: toy_reply
    dataset_path: json
    dataset_kwargs: {{data_files: {{test: "{data}"}}}}
    test_split: test
    output_type: generate_until
    doc_to_text: "{{{{question}}}}"
    doc_to_target: "{{{{a}}}}"
    generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 6, do_sample: false}}
    metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture
def folder(toys, tmp_path):
    """A model, two tasks and their data, for lm-eval in a process of its own."""
    toys.make_model("llama").save_pretrained(tmp_path / "model")
    toys.make_tokenizer().save_pretrained(tmp_path / "model")
    lines = [
        {
            "question": toys.make_text(n, 6 + 3 * n),
            "a": f" {toys.make_text(50 + n, 2)}",
            "b": f" {toys.make_text(90 + n, 5)}",
        }
        for n in range(10)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    for name, task in (("choice", TASK), ("reply", REPLY)):
        filled = textwrap.dedent(task).format(data=tmp_path / "data.jsonl")
        (tmp_path / "tasks" / f"{name}.yaml").write_text(filled)
    return tmp_path


def evaluate(folder: Path, store: str, kill_after: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(kill_after), store],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_killed_run_goes_on_and_ends_the_same(folder):
    whole = evaluate(folder, "undisturbed")
    assert whole.returncode == 0, whole.stderr[-2000:]
    for kill_after in (5, 14):
        killed = evaluate(folder, "killed", kill_after)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    resumed = evaluate(folder, "killed")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    from_store, results, samples = json.loads(resumed.stdout)
    assert from_store >= 19
    assert [0, results, samples] == json.loads(whole.stdout)
    lines = (folder / "killed" / "responses.jsonl").read_text().splitlines()
    keys = [record["key"] for line in lines for record in json.loads(line)]
    assert len(keys) == len(set(keys)) == 30  # no finished request was asked twice


def test_runs_under_simple_evaluate(folder, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    results = []
    for lm in (
        Engine(model, AutoTokenizer.from_pretrained(folder / "model")),
        HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder / "model")),
    ):
        manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
        found = lm_eval.simple_evaluate(
            model=lm, tasks=["toy_choice", "toy_reply"], task_manager=manager, bootstrap_iters=0
        )
        results.append(
            {task: {k: v for k, v in r.items() if k != "alias"} for task, r in found["results"].items()}
        )
    assert results[0] == results[1]
