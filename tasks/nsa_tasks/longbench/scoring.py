"""LongBench's scorers, as its eval.py and metrics.py act, odd cases included; 0..1 for a reply.

Eight of the nine are in the installed lm_eval as they are in LongBench, word for word, and are called there:
its inner functions, since the wrappers around them strip replies. They are used only while that file is the
one that was compared. Code similarity is lm-eval's no longer (it skips blank lines), so it is written here.
"""

import importlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from nsa_tasks._errors import TaskDataError
from nsa_tasks.longbench.datasets import DATASETS, bucket
from nsa_tasks.upstream import package_file, read_text

PACKAGES = ("jieba", "rouge", "fuzzywuzzy")
"""What lm-eval's scorers import: the extra `longbench`."""
_METRICS = "tasks/longbench/metrics.py"
_METRICS_SHA256 = "2b80d9715f8e7b709d3a7927c99f7a7c36cd5f413af1a16d946ae1a4a13b36d1"
_COMMENTS = ("`", "#", "//")
"""A line with one of these is no answer to a code task."""


def score_reply(
    dataset: str, reply: str, answers: Sequence[str], all_classes: Sequence[str] | None = None
) -> float:
    """Score one reply: the best over the answers.

    Args:
        dataset: LongBench's name of the dataset.
        reply: As the model gave it; white space counts.
        answers: Every right answer.
        all_classes: Of a classification task, the names of all classes.

    Raises:
        TaskDataError: The scorers can't be had.
    """
    facts = DATASETS[dataset]
    if facts.first_line:
        reply = reply.lstrip("\n").split("\n")[0]
    if facts.metric == "code_sim":
        return max((code_similarity(reply, answer) for answer in answers), default=0.0)
    metric = getattr(load_scorers(), f"{facts.metric}_score")
    return float(max((metric(reply, answer, all_classes=all_classes) for answer in answers), default=0.0))


def code_similarity(reply: str, answer: str) -> float:
    """Similarity of a reply's first line without a comment mark to the right line, in steps of .01.

    LongBench calls `fuzzywuzzy.fuzz.ratio`, which is difflib's ratio in percent; where python-Levenshtein is
    installed it is another one, without a word. Here it is always difflib's, as by LongBench's requirements.
    """
    lines = reply.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in _COMMENTS)), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100


def process(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score a document of LongBench (lm-eval's `process_results`)."""
    return {"score": score_reply(doc["dataset"], results[0], doc["answers"], doc["all_classes"])}


def process_e(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score a document of LongBench-E: in its length's column too, and in no other."""
    scores = process(doc, results)
    return {**scores, bucket(doc["length"]): scores["score"]}


@cache
def load_scorers() -> Any:  # noqa: ANN401  (a module)
    """lm-eval's module of scorers.

    Raises:
        TaskDataError: Not installed, one of `PACKAGES` is missing, or another version of lm-eval's file.
    """
    read_text(package_file("lm_eval", _METRICS), sha256=_METRICS_SHA256)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of python-Levenshtein, and of escapes in jieba's source
            module = importlib.import_module("lm_eval.tasks.longbench.metrics")
    except ImportError as error:
        raise TaskDataError(
            f"LongBench's scorers need {', '.join(PACKAGES)} ({error.__context__ or error}): "
            'pip install "nsa-eval[longbench]".'
        ) from error
    importlib.import_module("jieba").setLogLevel(logging.WARNING)  # it tells of its dictionary on stderr
    return module
