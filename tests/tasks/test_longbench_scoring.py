"""LongBench's scorers against values worked out by hand from their definitions, odd cases included."""

import sys

import pytest

from nsa_tasks import TaskDataError
from nsa_tasks.longbench import scoring
from nsa_tasks.longbench.datasets import BUCKETS, DATASETS, bucket
from nsa_tasks.longbench.scoring import code_similarity, process, process_e, score_reply

pytest.importorskip("jieba")
pytest.importorskip("rouge")
pytest.importorskip("fuzzywuzzy")

CLASSES = ["Animal", "Animal shelter", "Food"]


@pytest.mark.parametrize(
    ("dataset", "reply", "answers", "score"),
    [
        # F1 of words: lower case, without punctuation and a/an/the.
        ("hotpotqa", "Paris", ["Paris"], 1),
        ("hotpotqa", "The answer is Paris, France.", ["Paris"], 2 / 5),  # precision 1/4, recall 1
        ("hotpotqa", "The answer is Paris, France.", ["Rome", "Paris France"], 2 / 3),  # best answer
        ("hotpotqa", "paris paris", ["Paris"], 2 / 3),  # each repetition costs precision
        ("hotpotqa", "\nParis\nLyon", ["Paris"], 2 / 3),  # no cut to the first line here
        ("hotpotqa", "", ["Paris"], 0),
        ("hotpotqa", "the", ["A"], 0),  # nothing is left of either: nothing in common
        ("triviaqa", "\n\nParis\nLyon", ["Paris"], 1),  # leading newlines go, then the first line counts
        ("triviaqa", " \nParis", ["Paris"], 0),  # a line with a space is a first line
        # F1 of jieba's words, punctuation of both scripts dropped.
        ("multifieldqa_zh", "北京大学。", ["北京大学"], 1),
        ("multifieldqa_zh", "北京 大学", ["北京大学"], 0),  # other words
        ("multifieldqa_zh", "我爱北京", ["我爱上海"], 2 / 3),
        ("multifieldqa_zh", "。.", ["北京"], 0),
        # ROUGE-L: different words count once, case and punctuation count.
        ("gov_report", "the cat sat", ["the cat ran"], 2 / 3),
        ("gov_report", "The cat sat", ["the cat ran"], 1 / 3),
        ("gov_report", "a a a a", ["a b"], 2 / 3),  # precision 1 of 1, recall 1 of 2
        ("gov_report", "", ["a b"], 0),
        ("gov_report", ".", ["a b"], 0),  # the package refuses a text without a sentence
        ("samsum", "\nAnna is late.\nTom: hi", ["Anna is late."], 1),
        ("vcsum", "我爱北京", ["我爱上海"], 2 / 3),
        # Numbers in the reply: the share that is right.
        ("passage_retrieval_en", "Paragraph 15", ["Paragraph 15"], 1),
        ("passage_retrieval_en", "15, or Paragraph 3", ["Paragraph 15"], 1 / 2),
        ("passage_retrieval_en", "fifteen", ["Paragraph 15"], 0),
        ("passage_retrieval_en", "\uff11\uff15", ["Paragraph 15"], 0),  # full-width digits
        ("passage_retrieval_zh", "答案是段落7", ["段落7"], 1),
        ("passage_count", "7", ["7"], 1),
        ("passage_count", "7 of 10", ["7"], 1 / 2),
        ("passage_count", "07", ["7"], 0),
        # The first line without a comment mark, in steps of .01.
        ("lcc", "\n\nreturn x\nreturn y", ["return x"], 1),
        ("lcc", "```python\nreturn x", ["return x"], 1),
        ("lcc", "# c\n// c\nreturn x", ["return x"], 1),
        ("lcc", "return y", ["return x"], 0.88),  # 2 * 7 / 16 = .875, rounded to even percent
        ("lcc", "   \nreturn x", ["return x"], 0.18),  # a blank line is a line: 2 * 1 / 11
        ("lcc", "# c\n\nreturn x", ["return x"], 0),  # only newlines in front of all are dropped
        ("lcc", "// all comment", ["return x"], 0),
        ("repobench-p", "", [""], 1),
    ],
)  # fmt: skip
def test_scores_by_hand(dataset, reply, answers, score):
    assert score_reply(dataset, reply, answers) == pytest.approx(score, abs=1e-7)


@pytest.mark.parametrize(
    ("classes", "reply", "answer", "score"),
    [
        (CLASSES, "Animal shelter", "Animal shelter", 1),  # "Animal" is part of the answer and doesn't count
        (CLASSES, "Food, Animal", "Food", 1 / 2),
        (CLASSES, "It is Food.\nAnimal", "Food", 1),  # first line alone
        (CLASSES, "Animal", "Food", 0),
        (CLASSES, "food", "Food", 0),
        # Removed while iterating, the class after a removed one is passed over: "B" stays.
        (["A", "B", "A B"], "A B", "A B", 1 / 2),
    ],
)
def test_classes_by_hand(classes, reply, answer, score):
    for dataset in ("trec", "lsht"):
        assert score_reply(dataset, reply, [answer], classes) == pytest.approx(score)


def test_code_similarity_is_fuzzywuzzys():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fuzzywuzzy import fuzz

    if fuzz.SequenceMatcher.__module__ != "difflib":
        pytest.skip("python-Levenshtein is installed: fuzzywuzzy answers otherwise")
    lines = ["return x", "return yy", "x", "", "    for i in range(3):", "x" * 300 + "abc", "y" * 250 + "xxc"]
    for line in lines:
        for answer in lines:
            assert code_similarity(line, answer) == fuzz.ratio(line, answer) / 100


def test_a_data_sets_score_is_longbenchs_figure():
    replies = ["Paris", "The answer is Paris, France.", "no"]
    scores = [score_reply("qasper", reply, ["Paris"]) for reply in replies]
    assert round(100 * sum(scores) / len(scores), 2) == 46.67  # (1 + .4 + 0) / 3


def test_a_document_of_e_counts_in_its_own_column_alone():
    doc = {"dataset": "hotpotqa", "answers": ["Paris"], "all_classes": [], "length": 0}
    for length, column in ((0, 0), (3999, 0), (4000, 1), (7999, 1), (8000, 2), (60_000, 2)):
        assert bucket(length) == BUCKETS[column]
        assert process_e({**doc, "length": length}, ["Paris"]) == {"score": 1.0, BUCKETS[column]: 1.0}
    assert process(doc, ["Paris"]) == {"score": 1.0}


def test_every_metric_has_its_scorer():
    module = scoring.load_scorers()
    for facts in DATASETS.values():
        assert callable(getattr(module, f"{facts.metric}_score"))


@pytest.fixture
def fresh():
    scoring.load_scorers.cache_clear()
    yield
    scoring.load_scorers.cache_clear()


def test_a_missing_package_names_the_extra(fresh, monkeypatch):
    monkeypatch.delitem(sys.modules, "lm_eval.tasks.longbench.metrics", raising=False)
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(
        TaskDataError, match=r'jieba, rouge, fuzzywuzzy .*pip install "nsa-eval\[longbench\]"'
    ):
        scoring.load_scorers()


def test_scorers_of_another_version_are_refused(fresh, monkeypatch):
    monkeypatch.setattr(scoring, "_METRICS_SHA256", "0" * 64)
    with pytest.raises(TaskDataError, match=r"metrics\.py: another file .* expected 000"):
        scoring.load_scorers()
