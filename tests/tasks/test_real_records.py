"""LongBench v2 and bAbI over real records, where the data root has them: gold replies, and others'."""

import os
from pathlib import Path

import pytest

from nsa_tasks.babilong.scoring import is_right
from nsa_tasks.babilong.sources import facts_source
from nsa_tasks.babilong.stories import NAMES, read_questions
from nsa_tasks.data import ENVIRONMENT, load_data, local_paths
from nsa_tasks.longbench2.scoring import score
from nsa_tasks.longbench2.sources import records

ROOT = os.environ.get(ENVIRONMENT) or str(Path(__file__).resolve().parents[3] / "shared" / "data")


@pytest.fixture
def root():
    if not os.path.isdir(ROOT):
        pytest.skip(f"no data root ({ROOT})")
    return ROOT


def test_every_letter_is_right_for_its_own_question(root):
    source = records(root)
    if not local_paths(source, root):
        pytest.skip("no LongBench v2 in the data root")
    answers = [record["answer"] for record in load_data(source, root).records]
    for own, other in zip(answers, answers[1:] + answers[:1], strict=True):
        assert score(f"The correct answer is ({own})", own) == 1.0
        assert score(f"The correct answer is ({other})", own) == float(own == other)


@pytest.mark.parametrize("qa", NAMES)
def test_every_target_is_right_for_its_own_question(root, qa):
    source = facts_source(qa, root)
    if not local_paths(source, root):
        pytest.skip("no bAbI in the data root")
    data = load_data(source, root)
    questions = read_questions(data.records[0]["text"], data.places[0])
    wrong = {q.target for q in questions if not is_right(qa, q.target, q.target, q.text)}
    assert wrong == ({"none"} if qa == "qa7" else set())  # "none" holds "one", which no reply can help
    others = questions[7:] + questions[:7]
    assert not any(
        is_right(qa, q.target, other.target, q.text)
        for q, other in zip(questions, others, strict=True)
        if q.target != other.target and set(q.target.split(",")) != set(other.target.split(","))
    )
