"""LongBench's real records, where they are at hand: NSA_EVAL_DATA, or shared/data beside the checkout."""

import json
import os
from pathlib import Path

import pytest
from lm_eval.utils import apply_template

from nsa_tasks.longbench.datasets import DATASETS
from nsa_tasks.longbench.prompts import _LM_EVAL_SHA256, load_prompts
from nsa_tasks.longbench.records import load_records
from nsa_tasks.longbench.scoring import load_scorers, score_reply
from nsa_tasks.upstream import lm_eval_yaml

ROOT = Path(os.environ.get("NSA_EVAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
FOLDER = ROOT / "longbench" / "v1"

pytestmark = pytest.mark.skipif(not (FOLDER / "qasper.jsonl").is_file(), reason=f"no records in {FOLDER}")
for package in ("jieba", "rouge", "fuzzywuzzy"):
    pytest.importorskip(package)

# Points of 100 that another record's answer may get: words and numbers that answers have in common.
MOST_OF_ANOTHER = {
    "rouge": 20,
    "rouge_zh": 10,
    "code_sim": 30,
    "retrieval": 15,
    "retrieval_zh": 15,
    "qa_f1": 10,
}
# Templates of lm-eval that differ from LongBench's, in white space alone.
OTHER_SPACE = {
    *("lcc", "repobench-p"),  # no newline at the end
    *("passage_count", "passage_retrieval_en"),  # no space at the end
    *("samsum", "triviaqa"),  # one newline fewer before the input
}
ROUGE_RECORDS = 12
"""A long summary takes a tenth of a second, and the wrappers' comparison more of them than it is worth."""


def records(dataset):
    return load_records(DATASETS[dataset], e=False, root=str(ROOT)).records


def points(scores):
    scores = list(scores)
    return round(100 * sum(scores) / len(scores), 2)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_right_answer_has_full_marks_and_anothers_next_to_none(dataset):
    found = records(dataset)
    right = points(
        score_reply(dataset, answer, one["answers"], one["all_classes"])
        for one in found
        for answer in one["answers"]
    )
    others = zip(found, [*found[1:], found[0]], strict=True)
    wrong = points(
        score_reply(dataset, other["answers"][0], one["answers"], one["all_classes"]) for one, other in others
    )
    assert right == 100
    assert wrong <= MOST_OF_ANOTHER.get(DATASETS[dataset].metric, 5)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_record_fills_longbenchs_own_template(dataset):
    templates = json.loads((FOLDER / "config/dataset2prompt.json").read_text(encoding="utf-8"))
    prompts = load_prompts(DATASETS[dataset], "auto", str(ROOT))
    assert prompts.protocol == "official"
    for one in records(dataset):
        assert prompts.fill(one) == templates[dataset].format(**one)


@pytest.mark.parametrize("dataset", DATASETS)
def test_lm_evals_wording_differs_in_white_space_of_six_at_most(dataset):
    official, theirs = (
        load_prompts(DATASETS[dataset], wording, str(ROOT)) for wording in ("official", "lm-eval")
    )
    template = lm_eval_yaml(f"longbench/{dataset}.yaml", sha256=_LM_EVAL_SHA256[dataset])["doc_to_text"]
    for one in records(dataset):
        assert theirs.fill(one) == apply_template(template, {**one, "question": one["input"]})
        assert (official.fill(one) == theirs.fill(one)) is (dataset not in OTHER_SPACE)
        assert official.fill(one).split() == theirs.fill(one).split()


def test_budgets_are_longbenchs():
    budgets = json.loads((FOLDER / "config/dataset2maxlen.json").read_text(encoding="utf-8"))
    assert budgets == {name: facts.new_tokens for name, facts in DATASETS.items()}


@pytest.mark.parametrize("dataset", DATASETS)
def test_lm_evals_task_scores_stripped_one_line_replies_alike(dataset):
    """But for code, where blank lines differ too, and these have none."""
    metric = DATASETS[dataset].metric
    wrapper = getattr(load_scorers(), f"get_{metric}_score")
    found = records(dataset)[: ROUGE_RECORDS if "rouge" in metric else None]
    for one, other in zip(found, [*found[1:], found[0]], strict=True):
        for answer in (one["answers"][0], other["answers"][0]):
            reply = " ".join(answer.split("\n")).strip()
            [theirs] = wrapper(one, [reply]).values()
            assert score_reply(dataset, reply, one["answers"], one["all_classes"]) == theirs
