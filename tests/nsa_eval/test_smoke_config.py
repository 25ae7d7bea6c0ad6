"""configs/smoke.yaml from end to end on the bundled twins; its records are written here."""

import json
from hashlib import sha256

import pytest

pytest.importorskip("math_verify", reason="pip install 'nsa-eval[reasoning]'")
pytest.importorskip("jieba", reason="pip install 'nsa-eval[longbench]'")

import nsa_eval
from nsa_eval.plan import make_plan
from nsa_eval.results import load_run
from nsa_tasks import families
from nsa_tasks.groups import group_of
from nsa_tasks.longbench2 import sources

TEMPLATES = {
    "0shot": "$DOC$ $Q$ $C_A$ $C_B$ $C_C$ $C_D$ Answer:",
    "0shot_cot": "$DOC$ $Q$ Think:",
    "0shot_cot_ans": "$Q$ $COT$ So:",
}
SUBJECTS = (
    *("Algebra", "Counting & Probability", "Geometry", "Intermediate Algebra", "Number Theory"),
    *("Prealgebra", "Precalculus"),
)
LONG = "The keeper of the lighthouse walked along the shore and counted the boats that came home. " * 120


def _longbench(number, **changes):
    record = {
        "_id": f"r{number}", "input": "Who counted the boats?", "context": LONG, "answers": ["the keeper"],
        "length": 1900, "all_classes": None,
    }  # fmt: skip
    return record | changes


RECORDS = {
    "longbench/v1/hotpotqa.jsonl": [_longbench(1), _longbench(2)],
    "longbench/v1/lcc_e.jsonl": [
        _longbench(3, input="", context="x = 1\n" * 400, answers=["    return x"], length=4200)
    ],
    "longbench/v2/data.json": [
        {
            "_id": "v2", "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short",
            "answer": "B",
            "choice_A": "rain", "choice_B": "boats", "choice_C": "birds", "choice_D": "stones",
            "question": "What was counted?", "context": LONG,
        }
    ],
    "reasoning/gsm8k_test.jsonl": [{"question": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}],
    "general/math_test.jsonl": [
        {"problem": "What is $1 + 1$?", "solution": "It is $\\boxed{2}$.", "subject": subject, "level": "1"}
        for subject in SUBJECTS
    ],
    "corpus/pg19_test.jsonl": [{"text": LONG}],
}  # fmt: skip
STORY = (
    "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n"
    "4 Daniel went back to the hallway.\n5 Sandra moved to the garden.\n6 Where is Daniel? \thallway\t4\n"
)
PARAGRAPHS = [
    {
        "context": f"Boat {number} came home with {number} barrels of salt.",
        "qas": [
            {
                "id": str(number), "question": f"How many barrels had boat {number}?", "is_impossible": False,
                "answers": [{"text": str(number), "answer_start": 0}],
            }
        ],
    }
    for number in range(20)
]  # fmt: skip


@pytest.fixture
def data_root(tmp_path, monkeypatch):
    root = tmp_path / "data"

    def write(name, text):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    for name, rows in RECORDS.items():
        lines = [json.dumps(row) for row in rows]
        write(name, "\n".join(lines) + "\n" if name.endswith("l") else f"[{', '.join(lines)}]")
    write("babilong/tasks_1-20_v1-2/en-10k/qa1_single-supporting-fact_train.txt", STORY * 3)
    write("ruler/dev-v2.0.json", json.dumps({"data": [{"title": "boats", "paragraphs": PARAGRAPHS}]}))
    for name, text in TEMPLATES.items():
        write(f"longbench/v2/prompts/{name}.txt", text)
        monkeypatch.setitem(sources._TEMPLATES, name, sha256(text.encode()).hexdigest())
    monkeypatch.setenv("NSA_EVAL_DATA", str(root))
    return root


def test_every_family_has_a_task_in_it(data_root):
    asked = {job.task.task for job in make_plan(nsa_eval.load_config("smoke")).jobs}
    found = {name for name, family in families().items() if asked & set(family.tasks)}
    if asked >= {
        member.task for member in group_of("general_math").leaves()
    }:  # of its own tasks none runs without the flag
        found.add("general")
    assert found == set(families())


@pytest.mark.slow
def test_one_record_of_every_family_goes_from_config_to_page(data_root, tmp_path):
    result = nsa_eval.run("smoke", output=tmp_path / "run", progress=False)
    loaded = load_run(tmp_path / "run")
    assert list(loaded.models) == ["nsa", "dense"]
    planned = {job.task.label for job in make_plan(nsa_eval.load_config("smoke")).jobs}
    for model in loaded.models.values():
        assert set(model.tasks) == planned
        for task in model.tasks.values():
            assert {len(samples) for samples in task.filters.values()} == {1}
            metadata = task.config["metadata"]
            assert metadata["protocol"]
            assert any(key.endswith("_hash") for key in metadata) or metadata["family"] in ("needle", "ruler")
    assert {row.task for row in result.comparison.rows} >= planned
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in planned)
    scores = (tmp_path / "run" / "tables" / "scores.md").read_text(encoding="utf-8")
    assert scores.count("middle, over 512 tokens: 1 of 1 cut") >= 2
