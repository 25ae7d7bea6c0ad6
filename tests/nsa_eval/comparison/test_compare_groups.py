"""Groups of tasks (MMLU, LongBench) in a comparison: their scores, and what Holm takes together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nsa_eval.comparison import Comparison, compare, compare_run, to_table
from nsa_eval.comparison.scores import Scores
from nsa_eval.material import Material
from nsa_eval.results import load_run
from nsa_eval.sections.result import build as result_section
from nsa_eval.sections.tasks import build as tasks_section

FAST = {"resamples": 400}
SIZES = {"suite_a_one": 20, "suite_a_two": 10, "suite_b": 10}
SUBTASKS = {
    "suite": ["suite_a", "suite_b"],
    "suite_a": ["suite_a_one", "suite_a_two"],
    "unscored": ["suite_b"],
    "suite_b": [],
}


def write_suite(write_model: Any, scored: Any, home: Path, name: str, right: dict[str, int], *, by_size: bool,
                metrics: tuple[str, ...] = ("acc",)) -> None:  # fmt: skip
    """A model with a group of a group: of each task the first `right` documents are answered."""
    tasks, results = {}, {}
    for task, n in SIZES.items():
        scores = [1.0] * right[task] + [0.0] * (n - right[task])
        samples = scored(scores, metrics[0], question=[f"{task} {i}" for i in range(n)])
        for sample, score in zip(samples, scores, strict=True):
            sample |= {"metrics": list(metrics), **dict.fromkeys(metrics, score)}
        tasks[task] = samples
        results[task] = {"alias": task, "sample_len": n, **{f"{m},none": np.mean(scores) for m in metrics}}
    for group, members in (("suite", list(SIZES)), ("suite_a", ["suite_a_one", "suite_a_two"])):
        weights = [SIZES[member] if by_size else 1 for member in members]
        figures = {
            f"{m},none": float(np.average([results[t][f"{m},none"] for t in members], weights=weights))
            for m in metrics
        }
        results[group] = {"alias": group, "sample_len": sum(SIZES[t] for t in members), **figures}
    results["unscored"] = {"alias": "unscored"}
    directions = dict.fromkeys([*SIZES, "suite", "suite_a"], dict.fromkeys(metrics, True))
    write_model(home, name, tasks, results=results, group_subtasks=SUBTASKS, higher_is_better=directions)


@pytest.fixture
def suite(tmp_path: Path, write_model: Any, scored: Any) -> Any:
    def make(*, by_size: bool, **options: Any) -> Path:
        right = {"suite_a_one": 16, "suite_a_two": 2, "suite_b": 5}
        write_suite(write_model, scored, tmp_path, "a", right, by_size=by_size, **options)
        wrong = {"suite_a_one": 4, "suite_a_two": 0, "suite_b": 5}
        write_suite(write_model, scored, tmp_path, "b", wrong, by_size=by_size, **options)
        return tmp_path

    return make


def rows(comparison: Comparison) -> list[tuple[str, int, str]]:
    return [(row.task, row.depth, row.family_name) for row in comparison.rows]


def test_a_group_stands_before_its_members_and_only_it_is_a_headline(suite: Any) -> None:
    comparison = compare(suite(by_size=True), baseline="b", **FAST)
    assert rows(comparison) == [
        ("suite", 0, "headline"),
        ("suite_a", 1, "members 1"),
        ("suite_a_one", 2, "members 2"),
        ("suite_a_two", 2, "members 2"),
        ("suite_b", 1, "members 1"),
    ]
    assert [row.family for row in comparison.rows] == [1, 2, 2, 2, 2]
    # Of 40 documents 14 more, none less: exact McNemar, the only test of its family.
    headline = comparison.rows[0]
    assert (headline.n, headline.wins, headline.losses, headline.test) == (40, 14, 0, "mcnemar")
    assert headline.p == headline.p_adjusted == pytest.approx(2 / 2**14)
    assert headline.candidate_score.mean == pytest.approx(23 / 40)


def test_a_group_that_counts_tasks_alike_has_the_mean_of_its_tasks(suite: Any) -> None:
    [row, *_] = compare(suite(by_size=False), baseline="b", **FAST).rows
    assert row.candidate_score.mean == pytest.approx((16 / 20 + 2 / 10 + 5 / 10) / 3)
    assert row.baseline_score.mean == pytest.approx((4 / 20 + 0 + 5 / 10) / 3)
    assert row.difference == pytest.approx((12 / 20 + 2 / 10) / 3)
    assert (row.task, row.test, row.binary, row.n) == ("suite", "permutation", False, 40)
    assert row.interval is not None
    assert 0 < row.interval.low < row.difference < row.interval.high < 0.5


def test_the_spread_of_a_mean_over_tasks_is_that_within_them() -> None:
    values, strata = np.array([1.0, 0, 0, 1, 5, 5]), np.array([0, 0, 0, 0, 1, 1])
    scores = Scores(values, strata)
    # Tasks of means 0.5 and 5; only the first has any variance within, 0.25, over 4 documents.
    assert scores.spread.mean() == scores.weighted.mean() == pytest.approx(2.75)
    assert scores.spread.var() / 6 == pytest.approx((1 / 2) ** 2 * 0.25 / 4)


def test_a_second_metric_is_no_second_headline(suite: Any) -> None:
    path = suite(by_size=True, metrics=("acc", "acc_norm"))
    comparison = compare(path, baseline="b", **FAST)
    found = {(row.task, row.metric): (row.family_name, row.family) for row in comparison.rows}
    assert found["suite", "acc"] == ("headline", 1)
    assert found["suite", "acc_norm"] == found["suite_b", "acc_norm"] == ("further metrics", 5)
    asked = compare(path, baseline="b", metrics=["acc_norm"], **FAST)
    assert {row.family_name for row in asked.rows if row.task == "suite"} == {"headline"}


def test_tasks_are_chosen_by_their_group(suite: Any) -> None:
    path = suite(by_size=True)
    assert [row.task for row in compare(path, tasks=["suite_a"], **FAST).rows] == [
        *("suite_a", "suite_a_one", "suite_a_two")
    ]
    assert rows(compare(path, tasks=["suite_b"], **FAST)) == [("suite_b", 0, "headline")]


def test_the_main_filter_is_the_first_of_the_configuration(
    tmp_path: Path, write_model: Any, scored: Any
) -> None:
    for name in ("a", "b"):
        lines = [line | {"filter": kind} for kind in ("flexible", "strict") for line in scored([1, 0, 1])]
        config = {"filter_list": [{"name": "strict"}, {"name": "flexible"}]}
        write_model(tmp_path, name, {"t": lines}, config=config)
    assert [(row.filter, row.family_name) for row in compare(tmp_path, **FAST).rows] == [
        ("strict", "headline"),
        ("flexible", "further metrics"),
    ]


def test_every_format_shows_the_group(suite: Any) -> None:
    comparison = compare(suite(by_size=True), baseline="b", **FAST)
    markdown = to_table(comparison, "md")
    assert "| suite |" in markdown
    assert "| &nbsp;&nbsp;suite\\_a |" in markdown
    assert r"\quad \quad suite\_a\_one" in to_table(comparison, "latex")
    assert "suite,acc,none" in to_table(comparison, "csv")


@pytest.mark.parametrize("by_size", [True, False])
def test_the_report_shows_the_group_as_the_task_and_its_members_below(suite: Any, by_size: bool) -> None:
    run = load_run(suite(by_size=by_size))
    compared = compare_run(run).comparison
    material = Material(run, compared)
    result = result_section(material)
    assert [row.task for row in result.rows] == ["suite"]
    assert "on suite" in result.headline
    assert [score and score.value for score in result.rows[0].scores] == pytest.approx(
        [23 / 40, 9 / 40] if by_size else [0.5, 0.7 / 3]
    )
    assert len(result.rows[0].comparisons) == 1
    parts = {
        part.task: [row.task for row in (*part.rows, *part.members)] for part in tasks_section(material).tasks
    }
    assert parts["suite"] == ["suite", "suite_a", "suite_b"]
    assert parts["suite_a"] == ["suite_a", "suite_a_one", "suite_a_two"]
    assert parts["suite_b"] == ["suite_b"]


def test_a_group_score_without_a_comparison_has_its_interval(suite: Any) -> None:
    run = load_run(f"{suite(by_size=False)}:a")
    [score] = result_section(Material(run)).rows[0].scores
    assert score is not None
    assert score.value == pytest.approx(0.5)
    assert score.low is not None
    assert score.low < 0.5
