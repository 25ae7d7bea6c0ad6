"""The reasoning tasks in lm-eval: records of every shape, prompts, n replies, and what is refused."""

import gzip
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("math_verify", reason="pip install 'nsa-eval[reasoning]'")

from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from nsa_tasks import TaskDataError, TaskParameterError, resolve, task_spec
from nsa_tasks.data import load_data
from nsa_tasks.reasoning import grading, prompts
from nsa_tasks.reasoning.records import SOURCES, documents
from nsa_tasks.replies import problems_error

ROWS = {
    "reasoning_aime24": [
        {"id": 60, "problem": "What is 30 + 3?", "question": "What is 30 + 3?", "answer": "033"},
        {"ID": "2024-I-2", "Problem": "What is 2 + 2?", "Answer": 4},
    ],
    "reasoning_aime25": [
        {"prompt": "What is 8 + 8?\nThink, and put your final answer within \\boxed{}.", "answer": 16},
        {"problem": "What is\n1 + 1?", "answer": "2", "id": "1"},
    ],
    "reasoning_math500": [
        {"problem": "Half of one?", "solution": "...", "answer": "\\frac{1}{2}", "level": 1},
        {"problem": "Who is fastest?", "answer": "\\text{Evelyn}", "unique_id": "test/x/1.json"},
    ],
    "reasoning_gsm8k": [
        {
            "question": "A house?",
            "answer": "He made 80,000+50,000=$<<80000+50000=130000>>130,000\n#### 1,300",
        },
        {"question": "Eggs?", "answer": "She sells 9 * 2 = $<<9*2=18>>18\n#### 18"},
    ],
}
ANSWERS = {
    "reasoning_aime24": ["033", "4"],
    "reasoning_aime25": ["16", "2"],
    "reasoning_math500": ["\\frac{1}{2}", "\\text{Evelyn}"],
    "reasoning_gsm8k": ["1300", "18"],
}


def written(folder: Path, task: str, rows) -> str:
    path = folder / f"{SOURCES[task].file}.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(folder)


class Scripted(LM):
    """Replies by the place of a reply among all: right, another answer, unfinished thinking, empty."""

    tokenizer_name = "scripted"

    def generate_until(self, requests, disable_tqdm=False):
        self.settings = [request.args[1] for request in requests]
        wrong = ["It is \\boxed{7777}.", "<think>1, 2", ""]
        return [
            f"Well, \\boxed{{{request.doc['answer']}}}" if i % 4 == 0 else wrong[i % 4 - 1]
            for i, request in enumerate(requests)
        ]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def load(task, root, **params):
    spec = task_spec(task, {"data_root": root, **params}, tokenizer="t")
    return TaskManager(include_defaults=False).load([spec])


@pytest.mark.parametrize("task", ROWS)
def test_records_of_every_shape_become_problem_and_answer(task, tmp_path):
    data = load_data(SOURCES[task], written(tmp_path, task, ROWS[task]))
    made = documents(task, data)
    assert [doc["answer"] for doc in made] == ANSWERS[task]
    assert all(set(doc) == {"id", "problem", "answer"} and "boxed" not in doc["problem"] for doc in made)


@pytest.mark.parametrize("task", ROWS)
def test_replies_are_scored_together(task, tmp_path):
    root = written(tmp_path, task, ROWS[task])
    loaded = load(task, root, replies=4, temperature=0.7)
    lm = Scripted()
    results = evaluate(lm, loaded, bootstrap_iters=0)
    scores = results["results"][task]
    assert scores["avg@4,none"] == 0.25
    assert scores["pass@2,none"] == pytest.approx(0.5)
    assert scores["pass@4,none"] == 1.0
    # One right, one wrong, two silent: with a silent one it wins (2 of 6 pairs), with the wrong one it ties.
    assert scores["maj@2,none"] == pytest.approx((2 + 0.5) / 6)
    assert scores["maj@4,none"] == 0.5
    assert "avg@1,none" not in scores
    [first, _] = results["samples"][task]
    assert first["doc"]["reply_votes"] == [0, 1, -1, -1]
    assert first["doc"]["reply_answers"] == [ANSWERS[task][0], "7777", "", ""]
    assert first["doc"]["reasons"] == ["", "", "thinking never ended", "no answer"]
    assert lm.settings[0] == {
        "until": [], "max_gen_toks": resolve(task).budget, "do_sample": True,
        "temperature": 0.7, "top_p": resolve(task).top_p,
    }  # fmt: skip


def test_the_standard_error_counts_problems_not_replies(tmp_path):
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(8)]

    class EverySecondProblem(Scripted):
        def generate_until(self, requests, disable_tqdm=False):
            return [f"\\boxed{{{int(r.doc['answer']) // 2 * 2}}}" for r in requests]

    loaded = load("reasoning_gsm8k", written(tmp_path, "reasoning_gsm8k", rows), replies=3, temperature=1)
    results = evaluate(EverySecondProblem(), loaded, bootstrap_iters=10)
    scores = results["results"]["reasoning_gsm8k"]
    assert scores["avg@3,none"] == 0.5
    assert scores["avg@3_stderr,none"] == pytest.approx(problems_error([1.0, 0.0] * 4))


def test_one_greedy_reply_has_one_metric(tmp_path):
    root = written(tmp_path, "reasoning_gsm8k", ROWS["reasoning_gsm8k"])
    lm = Scripted()
    results = evaluate(lm, load("reasoning_gsm8k", root), bootstrap_iters=0)
    assert [key for key in results["results"]["reasoning_gsm8k"] if "@" in key] == [
        "avg@1,none",
        "avg@1_stderr,none",
    ]
    assert lm.settings[0] == {"until": [], "max_gen_toks": 8192, "do_sample": False}


def test_the_label_names_prompt_and_settings(tmp_path):
    (tmp_path / "p.txt").write_text("Q: {problem}\nBox it.", encoding="utf-8")
    root = written(tmp_path, "reasoning_aime24", ROWS["reasoning_aime24"])
    labels = {}
    for prompt in ("plain", "lm-eval", f"file:{tmp_path / 'p.txt'}"):
        task = load("reasoning_aime24", root, prompt=prompt, budget="8k")["tasks"]["reasoning_aime24"]
        labels[prompt.split(":")[0]] = task.config.metadata["protocol"]
        assert task.config.metadata["data_hash"].startswith("data:")
    settings = "16 replies, T 0.7, top-p 0.95, 8,192 tokens"
    assert labels == {
        "plain": f"nsa-eval: own prompt, {settings}",
        "lm-eval": f"nsa-eval: lm-eval's prompt, {settings}",
        "file": f"nsa-eval: prompt of a file, {settings}",
    }
    assert task.config.metadata["file_hash"].startswith("file:")
    assert task.doc_to_text(task.eval_docs[0]) == "Q: What is 30 + 3?\nBox it."


@pytest.mark.parametrize("task", ROWS)
def test_lm_evals_wording_is_read_from_its_package(task):
    text = prompts.wording(task, "lm-eval")("What is 2 + 2?")
    kept = ("Problem:\n", "\n\nSolution:") if task == "reasoning_math500" else ("Question: ", "\nAnswer:")
    assert text == f"{kept[0]}What is 2 + 2?{kept[1]}"


def test_braces_in_a_problem_are_text():
    assert prompts.wording("reasoning_math500", "plain")(r"$\frac{a}{b}$ {x}").startswith(
        r"$\frac{a}{b}$ {x}"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x?", "answer": "18"}, "line 1: its answer has no '#### number'"),
        ({"question": "", "answer": "#### 1"}, "line 1: its problem is no text"),
        ({"question": "x?", "answer": 1.5}, "line 1: its answer is neither text nor a whole number"),
        ({"question": "x?", "answer": "#### \\frac{"}, r"line 1: its answer .* isn't recognised"),
        ({"question": "x?"}, "line 1: the record has no answer"),
        ({"task": "x?", "answer": "#### 1"}, "has no problem or Problem or question or prompt"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(row, message, tmp_path):
    with pytest.raises(TaskDataError, match=message):
        load("reasoning_gsm8k", written(tmp_path, "reasoning_gsm8k", [row]))


def test_the_same_problem_twice_is_an_error(tmp_path):
    row = {"problem": "x?", "answer": 1}
    with pytest.raises(TaskDataError, match="line 2: the same problem stands there twice"):
        load("reasoning_aime24", written(tmp_path, "reasoning_aime24", [row, row]))


def test_missing_data_says_which_file_and_how(tmp_path):
    with pytest.raises(TaskDataError, match=r"no .*aime_2025\.jsonl.* Put the 30 problems there"):
        load("reasoning_aime25", str(tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replies": 4, "temperature": 0}, "greedy replies to a problem are all the same one"),
        ({"replies": 4, "temperature": 1, "k": [8]}, "no more than the 4 replies"),
        ({"k": [2, 2]}, "each once"),
        ({"k": [1]}, "from 2 to"),
        ({"temperature": -1}, "expected a number from 0 to 10"),
        ({"temperature": "warm"}, "expected a number from 0 to 10"),
        ({"top_p": 0}, "expected a number above 0 to 1"),
        ({"top_p": True}, "expected a number above 0 to 1"),
        ({"prompt": "nice"}, "expected plain, lm-eval, or file:PATH"),
        ({"budget": "lots"}, "expected a whole number of tokens"),
        ({"replies": 0}, "expected a whole number from 1"),
    ],
)
def test_wrong_parameters(given, message):
    with pytest.raises(TaskParameterError, match=message):
        resolve("reasoning_gsm8k", given)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such file"), ("Solve it.", "0 times"), ("{problem} {problem}", "2 times")],
)
def test_wrong_prompt_files(text, message, tmp_path):
    path = tmp_path / "p.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(TaskDataError, match=message):
        prompts.wording("reasoning_aime24", f"file:{path}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("repeats", 2, "set replies = 2"),
        ("generation_kwargs", {"max_gen_toks": 5, "do_sample": False, "until": []}, "change max_gen_toks"),
        ("generation_kwargs", {"max_gen_toks": 8192, "do_sample": False, "until": ["Q"]}, "change until"),
    ],
)
def test_settings_past_the_parameters_are_refused(key, value, message, tmp_path):
    root = written(tmp_path, "reasoning_gsm8k", ROWS["reasoning_gsm8k"])
    loaded = load("reasoning_gsm8k", root)
    loaded["tasks"]["reasoning_gsm8k"].set_config(key, value)
    with pytest.raises(TaskParameterError, match=message):
        evaluate(Scripted(), loaded, bootstrap_iters=0)


def test_thinking_that_the_chat_template_opens_has_to_end(tmp_path):
    root = written(tmp_path, "reasoning_gsm8k", ROWS["reasoning_gsm8k"])

    class Opened(Scripted):
        chat_template = ""

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return f"{chat_history[-1]['content']}<|assistant|><think>\n"

        def generate_until(self, requests, disable_tqdm=False):
            return [
                f"\\boxed{{{r.doc['answer']}}}" + ("" if i else "</think> \\boxed{1300}")
                for i, r in enumerate(requests)
            ]

    results = evaluate(
        Opened(),
        load("reasoning_gsm8k", root),
        bootstrap_iters=0,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    assert [row["avg@1"] for row in results["samples"]["reasoning_gsm8k"]] == [1.0, 0.0]


DATA = Path(os.environ.get("NSA_EVAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


@pytest.mark.parametrize("task", ROWS)
def test_real_answers_pass_against_themselves_and_hardly_another_does(task):
    if not (DATA / SOURCES[task].files[0]).is_file():
        pytest.skip("no real records beside the checkout")
    answers = [doc["answer"] for doc in documents(task, load_data(SOURCES[task], DATA))]
    assert grading.failing_golds(answers) == []
    golds = [grading.read_gold(answer) for answer in answers]
    replies = [grading.read_answer(f"So the answer is $\\boxed{{{answer}}}$.") for answer in answers]
    others = [*replies[1:], replies[0]]
    right = [grading.same(gold, reply) for gold, reply in zip(golds, replies, strict=True)]
    by_chance = [grading.same(gold, other) for gold, other in zip(golds, others, strict=True)]
    equal = [a == b for a, b in zip(answers, [*answers[1:], answers[0]], strict=True)]
    assert all(right)
    assert by_chance.count(True) <= equal.count(True) + 0.01 * len(answers)
