"""Requests that follow from replies: asked between lm-eval's two halves, kept in its own files' form."""

import json
from hashlib import sha256

import pytest
from lm_eval import evaluate, simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from nsa_tasks import TaskDataError, TaskError, task_spec
from nsa_tasks.longbench2 import sources

TEMPLATES = {
    "0shot": "Text: $DOC$\nAsked: $Q$ $C_A$ $C_B$ $C_C$ $C_D$",
    "0shot_cot": "Text: $DOC$\nAsked: $Q$ $C_A$ $C_B$ $C_C$ $C_D$\nThink:",
    "0shot_cot_ans": "Asked: $Q$ $C_A$ $C_B$ $C_C$ $C_D$\nThoughts: $COT$\nSo?",
    "0shot_no_context": "Asked: $Q$ $C_A$ $C_B$ $C_C$ $C_D$",
}
RECORD = {
    "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short", "answer": "B",
    "choice_A": "a", "choice_B": "b", "choice_C": "c", "choice_D": "d",
}  # fmt: skip


def record(number, **changes):
    name = f"r{number}"
    return {**RECORD, "_id": name, "question": f"Question {number}?", "context": f"Context {number}. " * 4,
            **changes}  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with three short questions and templates of this test's own."""
    prompts = tmp_path / "longbench/v2/prompts"
    prompts.mkdir(parents=True)
    for name, text in TEMPLATES.items():
        (prompts / f"{name}.txt").write_text(text, encoding="utf-8")
        monkeypatch.setitem(sources._TEMPLATES, name, sha256(text.encode()).hexdigest())
    rows = [record(0), record(1, difficulty="hard", length="long"), record(2, length="medium")]
    (tmp_path / "longbench/v2/data.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


class Thinker(LM):
    """Thinks about its prompt's question, and answers B; `silent` questions get an empty first reply."""

    tokenizer_name = "thinker"

    def __init__(self, silent=()):
        super().__init__()
        self.silent, self.calls, self.docs = silent, [], []

    def generate_until(self, requests, disable_tqdm=False):
        self.calls.append([request.args for request in requests])
        self.docs.append([dict(request.doc) for request in requests])
        return [self.reply(request.args[0]) for request in requests]

    def reply(self, prompt):
        number = prompt.split("Question ")[1][0]
        if "Thoughts:" in prompt:
            return "The correct answer is (B)"
        return "" if number in self.silent else f"thinking of {number} ($Q$) "

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return "".join(f"[{m['role']}]{m['content']}" for m in chat_history) + "[assistant]"

    def chat_template(self, chat_template=False):
        return "brackets"


def load(task, root, tokenizer, **parameters):
    spec = task_spec(task, {"data_root": str(root), **parameters}, tokenizer=tokenizer)
    return TaskManager(include_defaults=False).load([spec])


def run(lm, loaded, ask=True, **arguments):
    for task in loaded["tasks"].values():
        task.ask = lm.generate_until if ask else None
    return evaluate(lm, loaded, bootstrap_iters=0, **arguments)


def test_the_second_request_holds_the_first_reply(root, byte_tokenizer):
    lm = Thinker()
    results = run(lm, load("longbench2_cot", root, byte_tokenizer))
    first, second = lm.calls
    assert [len(first), len(second)] == [3, 3]
    prompt, settings = second[1]
    # The reply is filled in last: what looks like a mark in it stays.
    assert prompt == "Asked: Question 1? a b c d\nThoughts: thinking of 1 ($Q$)\nSo?"
    assert [first[0][1]["max_gen_toks"], settings["max_gen_toks"]] == [1024, 128]
    assert {k: settings[k] for k in ("do_sample", "temperature", "until")} == {
        "do_sample": True, "temperature": 0.1, "until": [],
    }  # fmt: skip
    assert results["results"]["longbench2_cot"]["overall,none"] == 1.0


def test_samples_show_both_prompts_and_both_replies(root, byte_tokenizer):
    samples = run(Thinker(), load("longbench2_cot", root, byte_tokenizer))["samples"]["longbench2_cot"]
    sample = samples[0]
    assert [request[0].split()[0] for request in sample["arguments"]] == ["Text:", "Asked:"]
    assert sample["resps"] == [["thinking of 0 ($Q$) "], ["The correct answer is (B)"]]
    assert sample["doc"]["follow_ups"] == 1
    assert "context" not in sample["doc"]
    assert "Context 0." not in json.dumps(sample["doc"])


def test_an_empty_first_reply_asks_nothing_more_and_counts_nowhere(root, byte_tokenizer):
    lm = Thinker(silent="02")
    results = run(lm, load("longbench2_cot", root, byte_tokenizer))
    assert len(lm.calls[1]) == 1
    scores = {key: value for key, value in results["results"]["longbench2_cot"].items() if "," in key}
    assert {key: value for key, value in scores.items() if "stderr" not in key} == {
        "answered,none": pytest.approx(1 / 3), "overall,none": 1.0, "hard,none": 1.0, "long,none": 1.0,
        "extracted,none": 1.0,
    }  # fmt: skip
    assert results["samples"]["longbench2_cot"][0]["doc"]["reasons"] == ["empty reply: not counted"]


def test_where_nothing_follows_nobody_is_asked_again(root, byte_tokenizer):
    lm = Thinker(silent="012")
    results = run(lm, load("longbench2_cot", root, byte_tokenizer))
    assert len(lm.calls) == 1
    assert results["results"]["longbench2_cot"]["answered,none"] == 0.0
    assert "overall,none" not in results["results"]["longbench2_cot"]


def test_each_of_several_replies_is_followed_by_its_own_request(root, byte_tokenizer):
    lm, loaded = Thinker(silent="1"), load("longbench2_cot", root, byte_tokenizer)
    loaded["tasks"]["longbench2_cot"].set_config("repeats", 2)
    samples = run(lm, loaded)["samples"]["longbench2_cot"]
    assert [len(call) for call in lm.calls] == [6, 4]
    assert [[len(resp) for resp in sample["resps"]] for sample in samples] == [[2, 1, 1], [2], [2, 1, 1]]
    assert samples[0]["overall"] == 1.0
    # Two replies of the same words are followed by two requests, which a store must tell apart.
    assert lm.calls[1][0] == lm.calls[1][1]
    assert lm.docs[1][0] != lm.docs[1][1]


def test_the_chat_template_words_both_requests_and_brings_the_model(root, byte_tokenizer):
    lm, loaded = Thinker(), load("longbench2_cot", root, byte_tokenizer)
    run(lm, loaded, ask=False, apply_chat_template=True, system_instruction="Be brief.")
    for call in lm.calls:
        assert all(prompt.startswith("[system]Be brief.[user]") for prompt, _ in call)
        assert all(prompt.endswith("[assistant]") for prompt, _ in call)
    other = Thinker()
    run(other, loaded, ask=False, apply_chat_template=True)
    assert len(other.calls) == len(lm.calls) == 2  # the same tasks ask whoever evaluates them now


def test_without_a_model_to_ask_it_is_said_before_anything_is(root, byte_tokenizer):
    lm = Thinker()
    with pytest.raises(TaskError, match=r"add --apply_chat_template, run it with nsa-eval, or set task\.ask"):
        run(lm, load("longbench2_cot", root, byte_tokenizer), ask=False)
    assert lm.calls == []


def test_ranks_are_refused(root, byte_tokenizer):
    task = load("longbench2_cot", root, byte_tokenizer)["tasks"]["longbench2_cot"]
    task.ask = Thinker().generate_until
    with pytest.raises(TaskError, match=r"lm-eval's ranks \(2\)"):
        task.build_all_requests(world_size=2)


def test_lm_evals_own_entry_runs_it(root, byte_tokenizer):
    lm = Thinker()
    results = simple_evaluate(
        model=lm,
        tasks=["longbench2_cot"],
        task_manager=TaskManager(
            include_defaults=False,
            include_path=str(sources.__file__).rsplit("/", 1)[0],
            metadata={"data_root": str(root), "tokenizer": byte_tokenizer},
        ),
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    assert results["results"]["longbench2_cot"]["overall,none"] == 1.0


@pytest.mark.parametrize(
    ("task", "prompt"),
    [
        ("longbench2", "Text: Context 0. Context 0. Context 0. Context 0.\nAsked: Question 0? a b c d"),
        ("longbench2_no_context", "Asked: Question 0? a b c d"),
    ],
)
def test_tasks_of_one_request(root, byte_tokenizer, task, prompt):
    class Right(Thinker):
        def reply(self, prompt):
            return "The correct answer is (B)"

    lm = Right()
    results = run(lm, load(task, root, byte_tokenizer))
    assert lm.calls[0][0][0] == prompt
    assert len(lm.calls) == 1
    scores = results["results"][task]
    assert {scores[f"{c},none"] for c in ("overall", "easy", "hard", "short", "medium", "long")} == {1.0}
    metadata = results["configs"][task]["metadata"]
    assert metadata["data_hash"].startswith("data:")
    assert metadata["prompt_hash"].startswith("prompt:")
    assert metadata["max_length"] == 120_000


def test_a_long_prompt_is_cut_and_its_sample_says_so(root, byte_tokenizer):
    lm = Thinker()
    samples = run(lm, load("longbench2", root, byte_tokenizer, max_length=41))["samples"]["longbench2"]
    whole = "Text: Context 0. Context 0. Context 0. Context 0.\nAsked: Question 0? a b c d"
    assert lm.calls[0][0][0] == whole[:19] + whole[-21:]  # BOS is one of the first twenty
    assert (samples[0]["doc"]["prompt_tokens"], samples[0]["doc"]["cut_from"]) == (41, len(whole) + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "E"}, r"data.json, record 1: answer: expected one of A, B, C, D, got 'E'"),
        ({"choice_A": 3}, r"record 1: choice_A: expected a text, got int"),
        ({"_id": "r1"}, r"record 2: a second record with the _id 'r1'"),
    ],
)
def test_bad_records_are_named(root, byte_tokenizer, change, message):
    rows = [record(0, **change), record(1)]
    (root / "longbench/v2/data.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(TaskDataError, match=message):
        load("longbench2", root, byte_tokenizer)


def test_another_template_is_refused_and_a_missing_one_named(root, byte_tokenizer):
    (root / "longbench/v2/prompts/0shot.txt").write_text("$DOC$ $Q$?", encoding="utf-8")
    with pytest.raises(TaskDataError, match=r"0shot.txt: another file than the one that was checked"):
        load("longbench2", root, byte_tokenizer)
    (root / "longbench/v2/prompts/0shot.txt").unlink()
    with pytest.raises(TaskDataError, match=r"no .*0shot.txt. Copy the folder prompts/ of https://github"):
        load("longbench2", root, byte_tokenizer)


def test_parts_are_read_in_order_where_the_whole_is_missing(root, byte_tokenizer):
    folder = root / "longbench/v2"
    (folder / "data.json").unlink()
    for number, part in enumerate(("short", "medium", "long")):
        (folder / f"{part}.jsonl").write_text(json.dumps(record(number, length=part)), encoding="utf-8")
    task = load("longbench2", root, byte_tokenizer)["tasks"]["longbench2"]
    assert [doc["_id"] for doc in task.eval_docs] == ["r0", "r1", "r2"]
