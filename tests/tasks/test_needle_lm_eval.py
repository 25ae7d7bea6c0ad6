"""The needle tasks through lm-eval's own seams."""

import hashlib
import json
import re

import pytest
from lm_eval import evaluate, simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from nsa_tasks import TASKS_DIR, TaskParameterError, task_spec

GRID = {"lengths": [600, 800], "depths": 3, "samples": 1}
NEEDLE = re.compile(r"One of the special magic \w+ for (.+?) is: (.+?)\.")


class Reader(LM):
    """A model that looks the answer up in the prompt, or answers wrongly on purpose."""

    tokenizer_name = "reader"

    def __init__(self, tokenizer, answer="all"):
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.answer = answer
        self.requests = []
        self.asked = 0

    def generate_until(self, requests, disable_tqdm=False):
        self.requests += [request.args for request in requests]
        return [self.reply(request.args[0]) for request in requests]

    def reply(self, prompt):
        question = prompt.rsplit(" mentioned in the provided text", 1)[0].rsplit(" for ", 1)[1]
        facts = [(key, value) for key, value in NEEDLE.findall(prompt) if key in question]
        values = [value for _, value in facts]
        self.asked += 1
        if self.answer == "empty" or (self.answer == "alternating" and self.asked % 2):
            return ""
        if self.answer == "other":
            return " " + next(value for key, value in NEEDLE.findall(prompt) if key not in question)
        if self.answer == "none":
            return " I do not know.\nIs it 1234?"
        if self.answer == "first":
            return f"\n{values[0]}."
        return " " + ", ".join(values) + "."

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def chat_template(self, chat_template=False):
        return self.tokenizer.chat_template


def load(*specs):
    return TaskManager(include_defaults=False).load(list(specs))


def run(lm, loaded, **arguments):
    """lm-eval's evaluation without the report on the machine, which takes seconds each time."""
    return evaluate(lm, loaded, bootstrap_iters=0, **arguments)


def token_count(lm, prompt):
    return len(lm.tokenizer(prompt, add_special_tokens=not prompt.startswith("<s>"))["input_ids"])


@pytest.mark.parametrize(
    ("task", "score_of_first"),
    [
        ("needle_single", 1.0),
        ("needle_multikey", 1.0),
        ("needle_multivalue", 0.25),
        ("needle_multiquery", 0.25),
    ],
)
def test_right_partial_and_wrong_models_score_as_they_should(bpe_tokenizer, task, score_of_first):
    loaded = load(task_spec(task, GRID, tokenizer=bpe_tokenizer))
    scores = {
        answer: run(Reader(bpe_tokenizer, answer), loaded)["results"][task]["score,none"]
        for answer in ("all", "first", "none")
    }
    assert scores == {"all": 1.0, "first": score_of_first, "none": 0.0}


def test_samples_carry_what_a_report_needs(bpe_tokenizer):
    lm = Reader(bpe_tokenizer)
    results = simple_evaluate(
        model=lm,
        tasks=[task_spec("needle_single", GRID, tokenizer=bpe_tokenizer)],
        task_manager=TaskManager(include_defaults=False),
        num_fewshot=3,
    )
    assert all(prompt.count("What is the special magic") == 1 for prompt, _ in lm.requests)  # no shots
    samples = results["samples"]["needle_single"]
    assert len(samples) == 6
    for sample in samples:
        doc = sample["doc"]
        assert sample["score"] == 1.0
        assert sample["target"] == doc["outputs"]
        assert {"id", "length", "depth", "seed", "needle_span", "needle", "answer", "prompt_tokens"} <= set(
            doc
        )
    config = results["configs"]["needle_single"]
    assert config["metadata"]["lengths"] == [600, 800]
    assert results["higher_is_better"]["needle_single"] == {"score": True}
    assert results["versions"]["needle_single"] == 1.1


def test_a_samples_line_holds_its_prompt_once_and_says_which_it_was(bpe_tokenizer):
    results = run(Reader(bpe_tokenizer), load(task_spec("needle_single", GRID, tokenizer=bpe_tokenizer)))
    for sample in results["samples"]["needle_single"]:
        prompt = sample["arguments"][0][0]
        text = prompt.removesuffix(" " + sample["doc"]["gen_prefix"])
        assert json.dumps(sample).count("I will quiz you about the numbers") == 1
        assert sample["doc"]["input_sha256"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("task", "answer", "reason"),
    [
        ("needle_single", "none", "something else"),
        ("needle_single", "empty", "nothing"),
        ("needle_multikey", "other", "another needle's value"),
        ("needle_multivalue", "first", "1 of 4 values"),
    ],
)
def test_samples_say_what_failed_replies_hold(bpe_tokenizer, task, answer, reason):
    def samples(model):
        spec = task_spec(task, GRID, tokenizer=bpe_tokenizer)
        return run(Reader(bpe_tokenizer, model), load(spec))["samples"][task]

    failed, right = samples(answer), samples("all")
    assert [sample["doc"]["reasons"] for sample in failed] == [[reason]] * 6
    assert not any("reasons" in sample["doc"] for sample in right)
    # What pairs the documents of two models is the same, whatever they answered.
    assert [sample["doc_hash"] for sample in failed] == [sample["doc_hash"] for sample in right]


def test_each_of_several_replies_has_its_reason(bpe_tokenizer):
    loaded = load(task_spec("needle_single", GRID, tokenizer=bpe_tokenizer))
    loaded["tasks"]["needle_single"].set_config("repeats", 2)
    results = run(Reader(bpe_tokenizer, "alternating"), loaded)
    assert results["results"]["needle_single"]["score,none"] == 0.5
    for sample in results["samples"]["needle_single"]:
        assert sorted(sample["doc"]["reasons"]) == ["", "nothing"]


def test_results_name_a_text_by_path_and_content(bpe_tokenizer, tmp_path):
    essay = tmp_path / "essay.txt"
    essay.write_text(" ".join(f"Visitor {i} came to see the garden." for i in range(300)), encoding="utf-8")
    params = {"lengths": [600], "depths": [50], "samples": 1, "haystack": f"text:{essay}"}
    results = run(Reader(bpe_tokenizer), load(task_spec("needle_single", params, tokenizer=bpe_tokenizer)))
    metadata = results["configs"]["needle_single"]["metadata"]
    [sample] = results["samples"]["needle_single"]
    assert metadata["haystack"] == f"text:{essay}"
    assert metadata["text_hash"] == sample["doc"]["haystack"] != f"text:{essay}"


def test_requests_are_greedy_and_stop_only_at_their_budget(bpe_tokenizer):
    lm = Reader(bpe_tokenizer)
    run(lm, load(task_spec("needle_single", {**GRID, "new_tokens": 20}, tokenizer=bpe_tokenizer)))
    assert len(lm.requests) == 6
    for i, (prompt, arguments) in enumerate(lm.requests):
        assert arguments == {"do_sample": False, "temperature": 0.0, "until": [], "max_gen_toks": 20}
        assert 0 <= GRID["lengths"][i // 3] - token_count(lm, prompt) - 20 <= 3


def test_one_task_twice_under_two_names(bpe_tokenizer):
    specs = [
        task_spec("needle_single", GRID, tokenizer=bpe_tokenizer),
        task_spec("needle_single", {**GRID, "needle": "uuid"}, tokenizer=bpe_tokenizer, alias="needle_uuid"),
    ]
    results = run(Reader(bpe_tokenizer), load(*specs))["results"]
    assert results["needle_single"]["score,none"] == results["needle_uuid"]["score,none"] == 1.0


def test_alias_does_not_change_the_documents(bpe_tokenizer):
    manager = TaskManager(include_defaults=False)
    plain, other = (
        manager.load([task_spec("needle_single", GRID, tokenizer=bpe_tokenizer, alias=alias)])["tasks"]
        for alias in (None, "b")
    )
    assert list(plain["needle_single"].eval_docs) == list(other["b"].eval_docs)


def test_include_path_and_metadata_work_without_our_functions(bpe_tokenizer):
    manager = TaskManager(
        include_path=str(TASKS_DIR),
        include_defaults=False,
        metadata={"pretrained": bpe_tokenizer, "dtype": "auto", **GRID, "new_tokens": 30, "num_keys": 2},
    )
    asking = {"needle_multikey", "needle_multiquery", "needle_multivalue", "needle_single"}
    assert asking | {"needle_single_nll", "needle_multikey_nll"} <= set(manager.all_subtasks)
    lm = Reader(bpe_tokenizer)
    results = run(lm, manager.load(["needle"]))
    assert {name: row["score,none"] for name, row in results["results"].items()} == dict.fromkeys(asking, 1.0)
    assert {arguments["max_gen_toks"] for _, arguments in lm.requests} == {30}
    assert results["samples"]["needle_multikey"][0]["doc"]["needles"][2:] == []


@pytest.mark.parametrize("told", [True, False])
def test_chat_template_never_makes_a_request_too_long(bpe_tokenizer, told):
    """Also when only lm-eval was told of it: the documents are then sized again."""
    lm = Reader(bpe_tokenizer)
    spec = task_spec("needle_single", GRID, tokenizer=bpe_tokenizer, apply_chat_template=told)
    results = run(lm, load(spec), apply_chat_template=True)
    assert results["results"]["needle_single"]["score,none"] == 1.0
    for sample in results["samples"]["needle_single"]:
        prompt, doc = sample["arguments"][0][0], sample["doc"]
        assert prompt.startswith("<s><|user|>\n")
        assert token_count(lm, prompt) == doc["prompt_tokens"]
        assert 0 <= doc["length"] - doc["prompt_tokens"] - doc["new_tokens"] <= 3


@pytest.mark.parametrize("template", [True, False])
def test_system_instruction_is_inside_the_length(bpe_tokenizer, template):
    lm = Reader(bpe_tokenizer)
    spec = task_spec("needle_single", GRID, tokenizer=bpe_tokenizer, apply_chat_template=template)
    results = run(lm, load(spec), apply_chat_template=template, system_instruction="Answer briefly.")
    for sample in results["samples"]["needle_single"]:
        prompt, doc = sample["arguments"][0][0], sample["doc"]
        assert "Answer briefly." in prompt
        assert token_count(lm, prompt) == doc["prompt_tokens"]
        assert 0 <= doc["length"] - doc["prompt_tokens"] - doc["new_tokens"] <= 6


def test_a_larger_reply_than_the_budget_is_refused(bpe_tokenizer):
    loaded = load(task_spec("needle_single", GRID, tokenizer=bpe_tokenizer))
    # What `gen_kwargs` does to a task in `simple_evaluate`.
    loaded["tasks"]["needle_single"].set_config("generation_kwargs", {"max_gen_toks": 500}, update=True)
    with pytest.raises(TaskParameterError, match="max_gen_toks = 500 in gen_kwargs exceeds the 16"):
        run(Reader(bpe_tokenizer), loaded)


def test_request_cache_of_lm_eval_cannot_mix_lengths(bpe_tokenizer, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("lm-eval's request cache has no lengths in its key")

    monkeypatch.setattr("lm_eval.api.task.save_to_cache", forbidden)
    loaded = load(task_spec("needle_single", GRID, tokenizer=bpe_tokenizer))
    run(Reader(bpe_tokenizer), loaded, cache_requests=True)
