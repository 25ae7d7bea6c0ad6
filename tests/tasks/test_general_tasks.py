"""The nine general benchmarks on local records: prompts, golds as replies, DROP mended, programs run."""

import gzip
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("math_verify", reason="pip install 'nsa-eval[reasoning]'")

import lm_eval.tasks
from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from nsa_tasks import TaskDataError, group_of, task_spec
from nsa_tasks.general.code import examples_in
from nsa_tasks.general.records import ALL_SOURCES
from nsa_tasks.general.sandbox import passes

LM_EVAL = Path(lm_eval.tasks.__file__).parent
SHOTS = {
    "mmlu": 5, "mmlu_pro": 5, "cmmlu": 5, "bbh_cot_fewshot": 3, "gsm8k": 8, "minerva_math_algebra": 4,
    "drop": 1,
}  # fmt: skip
YAMLS = {
    "mmlu": "mmlu/default/mmlu_anatomy.yaml",
    "mmlu_pro": "mmlu_pro/mmlu_pro_law.yaml",
    "cmmlu": "cmmlu/cmmlu_agronomy.yaml",
    "bbh_cot_fewshot": "bbh/cot_fewshot/navigate.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "minerva_math_algebra": "minerva_math/minerva_math_algebra.yaml",
    "drop": "drop/default.yaml",
}
"""Of each member of the group one of lm-eval's tasks."""
METRICS = {
    "mmlu": "acc,none", "mmlu_pro": "exact_match,custom-extract", "cmmlu": "acc,none",
    "bbh_cot_fewshot": "exact_match,get-answer", "gsm8k": "exact_match,strict-match",
    "minerva_math_algebra": "exact_match,none", "drop": "f1,none",
}  # fmt: skip

CHOICES = {"question": "Which?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 2}
FOREIGN = {**CHOICES, "subject": "law", "question": "Not this one?"}
CMMLU = {
    "subject": "agronomy",
    "Question": "哪个",
    "A": "一",
    "B": "二",
    "C": "三",
    "D": "四",
    "Answer": "B",
}
PRO = {
    "question": "Which?", "options": ["x", "y", "z"], "answer": "C", "category": "law",
    "cot_content": "A: Let's think step by step. The answer is (C).",
}  # fmt: skip
DROP = {
    "context": "Passage: They had 12.5 tons. Then more came.\nQuestion: How many tons?\nAnswer:",
    "completion": " 12.5", "ref_text": "12.5|13",
}  # fmt: skip
MATH = {"problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$.", "type": "Algebra", "level": 1}
ROWS = {
    "general/mmlu/test.jsonl": [CHOICES, FOREIGN],
    "general/mmlu/dev.jsonl": [{**CHOICES, "question": f"Dev {i}?"} for i in range(5)],
    "general/mmlu_pro/test.jsonl": [PRO],
    "general/mmlu_pro/validation.jsonl": [{**PRO, "question": f"Dev {i}?"} for i in range(5)],
    "general/cmmlu/test.jsonl": [CMMLU],
    "general/cmmlu/dev.jsonl": [{**CMMLU, "Question": f"例 {i}"} for i in range(5)],
    "reasoning/gsm8k_test.jsonl": [{"question": "How many?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}],
    "reasoning/gsm8k_train.jsonl": [{"question": f"Train {i}?", "answer": f"x\n#### {i}"} for i in range(8)],
    "general/math_test.jsonl": [MATH, {**MATH, "type": "Counting & Probability"}],
    "general/drop_dev.jsonl": [DROP],
    "general/drop_train.jsonl": [
        {"context": "Passage: A b.\nQuestion: Who?\nAnswer:", "completion": " Ann", "ref_text": "Ann|Anna"}
    ]
    * 3,
    "general/humaneval.jsonl": [
        {
            "task_id": "HumanEval/0",
            "prompt": "def double(x):\n",
            "entry_point": "double",
            "canonical_solution": "    return 2 * x\n",
            "test": "def check(candidate):\n    assert candidate(2) == 4\n",
        }
    ],
    "general/mbpp.jsonl": [
        {"task_id": i, "text": f"Function {i}.", "code": "def f(x):\r\n    return x", "test_setup_code": "",
         "test_list": ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3"], "challenge_test_list": []}
        for i in (2, 11, 510, 511)
    ],
}  # fmt: skip
BBH = {"examples": [{"input": "Do you return?\nOptions:\n- Yes\n- No", "target": "No"}]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Small records of all nine, as their published files have them."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        path = folder / f"{name}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    (folder / "general" / "bbh").mkdir()
    (folder / "general" / "bbh" / "navigate.json").write_text(json.dumps(BBH))
    return str(folder)


class Gold(LM):
    """Answers right: by the gold's log-likelihood, or with the gold in the words of the task."""

    tokenizer_name = "gold"

    def loglikelihood(self, requests, disable_tqdm=False):
        self.prompts = [request.args[0] for request in requests]
        found = []
        for request in requests:
            gold = request.doc.get("answer", "ABCD".find(str(request.doc.get("Answer"))))
            found.append((0.0 if request.idx == gold else -9.0, False))
        return found

    def generate_until(self, requests, disable_tqdm=False):
        self.prompts = [request.args[0] for request in requests]
        self.settings = [request.args[1] for request in requests]
        return [gold_reply(request.doc) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def gold_reply(doc):
    if "options" in doc:
        return f"So the answer is ({doc['answer']})."
    if "target" in doc:
        return f"We walk. So the answer is {doc['target']}."
    if "answers" in doc:
        return f" {doc['answers'][0][0]}."
    if "solution" in doc:
        return (
            f"{doc['solution']}\nFinal Answer: The final answer is ${doc['answer']}$. I hope it is correct."
        )
    if "canonical_solution" in doc:
        return doc["canonical_solution"]
    return doc.get("code") or doc["answer"]


def settings_of(member):
    [leaf] = [leaf for leaf in group_of("general_nsa").leaves() if leaf.task == member]
    return dict(leaf.settings)


def load(member, root, **changes):
    """A member as the group has lm-eval make it, without its index of all tasks."""
    theirs = load_yaml(LM_EVAL / YAMLS[member], resolve_func=True)
    theirs.pop("tag", None)
    cfg = {**theirs, **settings_of(member), **changes}
    cfg["metadata"] = {**cfg.get("metadata", {}), "data_root": root}
    return cfg["class"](config=cfg)


def run(task, lm=None, **more):
    lm = lm or Gold()
    return evaluate(lm, {"tasks": {task.config.task: task}, "groups": {}}, bootstrap_iters=0, **more), lm


@pytest.mark.parametrize("member", YAMLS)
def test_the_gold_answer_is_right_after_the_papers_examples(member, root):
    task = load(member, root)
    assert task.config.num_fewshot == SHOTS[member]
    results, lm = run(task)
    [scores] = results["results"].values()
    assert scores[METRICS[member]] == 1.0
    [sample, *_] = results["samples"][task.config.task]
    metadata = results["configs"][task.config.task]["metadata"]
    assert metadata["protocol"].startswith("lm-eval")
    assert metadata["data_hash"].startswith("data:")
    assert "Not this one?" not in str(results["samples"])
    examples = sum(lm.prompts[0].count(mark) for mark in ("Dev ", "例 ", "Train ", "Who?"))
    if member not in ("bbh_cot_fewshot", "minerva_math_algebra"):  # whose examples stand in lm-eval's YAML
        assert examples == SHOTS[member]
    assert sample["doc_id"] == 0


def test_budgets_are_named_and_hold_a_chain_of_thought(root):
    budgets = {}
    for member in ("mmlu_pro", "bbh_cot_fewshot", "gsm8k", "minerva_math_algebra", "drop"):
        budgets[member] = load(member, root).config.generation_kwargs["max_gen_toks"]
    assert budgets == {
        "mmlu_pro": 2048, "bbh_cot_fewshot": 1024, "gsm8k": 1024, "minerva_math_algebra": 2048, "drop": 128,
    }  # fmt: skip


class Says(Gold):
    def __init__(self, text):
        super().__init__()
        self.text = text

    def generate_until(self, requests, disable_tqdm=False):
        super().generate_until(requests)
        return [self.text] * len(requests)


@pytest.mark.parametrize(
    ("reply", "em", "f1"),
    [
        (" 12.5", 1.0, 1.0),
        (" 12.5.", 1.0, 1.0),  # lm-eval's stop made it 12, its scorer makes "12.5." 125
        (" 13", 1.0, 1.0),  # another accepted answer
        (" 12", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_drop_by_hand(reply, em, f1, root):
    task = load("drop", root)
    results, lm = run(task, Says(reply))
    assert (results["results"]["drop"]["em,none"], results["results"]["drop"]["f1,none"]) == (em, f1)
    assert lm.prompts == ["A b. Who? Ann\n\nThey had 12.5 tons. Then more came. How many tons?"]
    assert lm.settings[0]["until"] == ["\n"]
    assert task.config.metadata["protocol"] == "lm-eval, examples and stop mended"


def test_missing_examples_are_told_and_not_needed_without_shots(root, tmp_path, caplog):
    (tmp_path / "general").mkdir()
    os.symlink(Path(root) / "general" / "drop_dev.jsonl.gz", tmp_path / "general" / "drop_dev.jsonl.gz")
    with pytest.raises(TaskDataError, match=r"no examples to show: no .*drop_train\.jsonl.*num_fewshot: 0"):
        run(load("drop", str(tmp_path)))
    results, lm = run(load("drop", str(tmp_path), num_fewshot=0))
    assert results["results"]["drop"]["em,none"] == 1.0
    assert lm.prompts == ["They had 12.5 tons. Then more came. How many tons?"]
    assert "fewshot_split" not in caplog.text  # lm-eval's warning, of a rule that isn't used


def test_no_records_at_all_name_the_file_and_the_hub(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", offline)
    message = (
        r"no .*gsm8k_test\.jsonl, and the hub's openai/gsm8k can't be had \(ConnectionError: no network\)"
    )
    with pytest.raises(TaskDataError, match=message):
        load("gsm8k", str(tmp_path))


def test_a_file_without_the_subject_is_an_error(root, tmp_path):
    folder = tmp_path / "general" / "mmlu"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(json.dumps(FOREIGN) + "\n")
    with pytest.raises(TaskDataError, match=r"test\.jsonl: no record of 'anatomy'"):
        load("mmlu", str(tmp_path))


def test_the_group_has_the_papers_nine_in_its_order():
    names = [leaf.task for leaf in group_of("general_nsa").leaves()]
    assert [name for name in names if not name.startswith("minerva_")] == [
        "mmlu", "mmlu_pro", "cmmlu", "bbh_cot_fewshot", "gsm8k", "drop", "general_mbpp", "general_humaneval",
    ]  # fmt: skip
    assert {member: settings_of(member)["num_fewshot"] for member in YAMLS} == SHOTS
    assert len({source.files for source in ALL_SOURCES}) == len(ALL_SOURCES)


def code(task, root):
    return TaskManager(include_defaults=False).load([task_spec(task, {"data_root": root}, tokenizer="t")])


@pytest.mark.parametrize(("task", "documents"), [("general_humaneval", 1), ("general_mbpp", 2)])
def test_solutions_of_the_records_pass(task, documents, root):
    loaded = code(task, root)
    results = evaluate(Gold(), loaded, bootstrap_iters=0, confirm_run_unsafe_code=True)
    assert results["results"][task]["pass@1,none"] == 1.0
    assert results["n-samples"][task]["original"] == documents  # of MBPP numbers 11 to 510 alone
    wrong = evaluate(
        Says("    return 5\n"), code(task, root), bootstrap_iters=0, confirm_run_unsafe_code=True
    )
    assert wrong["results"][task]["pass@1,none"] == 0.0


def test_prompts_of_code_are_lm_evals(root):
    lm = Gold()
    evaluate(lm, code("general_mbpp", root), bootstrap_iters=0, confirm_run_unsafe_code=True)
    assert lm.prompts[0].count("[BEGIN]") == 4
    assert lm.prompts[0].count("[DONE]") == 3
    assert "assert f(3) == 3\n[BEGIN]\n" in lm.prompts[0]
    assert lm.settings[0] == {"until": ["[DONE]"], "do_sample": False, "max_gen_toks": 1024}
    evaluate(lm, code("general_humaneval", root), bootstrap_iters=0, confirm_run_unsafe_code=True)
    assert lm.prompts == ["def double(x):\n"]
    assert "\ndef" in lm.settings[0]["until"]


def test_lm_eval_asks_before_it_runs_code(root):
    with pytest.raises(ValueError, match="confirm_run_unsafe_code"):
        evaluate(Gold(), code("general_humaneval", root), bootstrap_iters=0)


def test_several_programs_are_averaged(root):
    loaded = code("general_humaneval", root)
    [task] = loaded["tasks"].values()
    doc = task.eval_docs[0]
    good, bad = "    return 2 * x\n", "    return x\n"
    assert task.process_results(doc, [[good, bad, bad, good]]) == {"pass@1": 0.5}
    assert task.process_results(doc, [good]) == {"pass@1": 1.0}


PROGRAMS = [
    ("assert 1 + 1 == 2", True),
    ("assert 1 + 1 == 3", False),
    ("x = (", False),
    ("import sys; sys.exit(0)", False),  # leaving early is no pass
    ("import os; os._exit(0)", False),
    ("print('passed')", True),
    ("raise SystemExit", False),
    ("while True: pass", False),
    ("x = 'a' * (8 << 30)", False),
    ("open('big', 'wb').write(b'x' * (64 << 20))", False),
    ("open('small', 'w').write('x')", True),  # in a folder of its own
    ("assert __name__ != '__main__'", True),
    ("import numpy; assert numpy.ones(2).sum() == 2", True),
    ("s = '\u00e9'; assert s == '\\u00e9'", True),
    ("input()", False),
]


@pytest.mark.parametrize(("program", "passed"), PROGRAMS, ids=[text for text, _ in PROGRAMS])
def test_programs(program, passed):
    assert passes(program) is passed


def test_a_program_that_waits_is_ended_with_what_it_started(monkeypatch):
    monkeypatch.setattr("nsa_tasks.general.sandbox.WALL_SECONDS", 1)
    assert not passes("import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)")


def test_examples_are_read_without_running_the_file():
    text = "raise ValueError\ndef list_fewshot_samples():\n    return [{'a': 1}]\n"
    assert examples_in(text) == [{"a": 1}]
    with pytest.raises(TaskDataError, match="list_fewshot_samples"):
        examples_in("x = 1")


DATA = Path(os.environ.get("NSA_EVAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


@pytest.mark.parametrize("member", [name for name in YAMLS if name != "minerva_math_algebra"])
def test_real_golds_are_right(member):
    if not (DATA / "general" / "mmlu").is_dir():
        pytest.skip("no real records beside the checkout")
    # The folder has no examples of these two.
    shots = {"num_fewshot": 0} if member in ("mmlu_pro", "drop") else {}
    task = load(member, str(DATA), **shots)
    results, _ = run(task, limit=100)
    [scores] = results["results"].values()
    assert scores[METRICS[member]] == 1.0
