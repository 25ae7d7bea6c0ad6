"""What a comparison says about two or more models."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_eval.comparison import Comparison, compare
from nsa_eval.comparison._rows import RowMaker
from nsa_eval.errors import UserError
from nsa_eval.results import Sample, TaskResult, load_run

FAST = {"resamples": 500}


@pytest.fixture
def pair(tmp_path: Path, write_model: Any, scored: Any) -> Any:
    """Writes models with the given scores on one task, and returns their run directory."""

    def make(**models: list[float]) -> Path:
        for name, scores in models.items():
            write_model(tmp_path, name, {"t": scored(scores)})
        return tmp_path

    return make


def test_zero_one_scores_get_mcnemar_and_tango(pair: Any) -> None:
    # Documents: 10 both right, 8 only a, 2 only b. a 18/20, b 12/20, difference 0.3, p = 112/1024.
    path = pair(a=[1] * 10 + [1] * 8 + [0] * 2, b=[1] * 10 + [0] * 8 + [1] * 2)
    comparison = compare(path, baseline="b", **FAST)
    (row,) = comparison.rows
    assert (row.candidate, row.baseline, row.n, row.wins, row.losses, row.ties) == ("a", "b", 20, 8, 2, 10)
    assert row.difference == pytest.approx(0.3)
    assert (row.test, row.p, row.p_adjusted) == (
        "mcnemar",
        pytest.approx(112 / 1024),
        pytest.approx(112 / 1024),
    )
    assert row.interval is not None
    assert row.interval.method == "tango"
    assert row.bootstrap is not None
    assert row.bootstrap.method == "bca"
    assert row.baseline_score.interval is not None
    assert row.baseline_score.interval.method == "wilson"
    assert row.verdict == "not distinguishable"


def test_other_scores_get_the_permutation_test_and_the_bootstrap(pair: Any) -> None:
    # Ten documents, a always 0.1 to 0.4 above: all 10 signs alike, p = 2 / 2^10.
    b = [0.05 * i for i in range(10)]
    path = pair(a=[s + 0.1 * (1 + i % 4) for i, s in enumerate(b)], b=b)
    (row,) = compare(path, baseline="b", resamples=2000).rows
    assert (row.test, row.p) == ("permutation", pytest.approx(2 / 1024))
    assert row.interval is not None
    assert row.interval == row.bootstrap
    assert row.verdict == "better"


def test_identical_models_differ_by_nothing_and_the_row_says_what_it_could_not_see(pair: Any) -> None:
    (row,) = compare(pair(a=[1] * 20, b=[1] * 20), baseline="b", **FAST).rows
    assert (row.difference, row.p, row.verdict) == (0, 1, "not distinguishable")
    assert row.interval is not None
    assert row.interval.high > 0.15
    assert row.bootstrap is not None
    assert row.bootstrap.high > 0.15
    assert row.minimum_detectable is not None
    assert row.minimum_detectable > 0.3


def test_one_document_is_compared_without_a_claim(pair: Any) -> None:
    (row,) = compare(pair(a=[1], b=[0]), baseline="b", **FAST).rows
    assert (row.difference, row.p, row.minimum_detectable) == (1, 1, None)


def test_lower_is_better_is_honoured(tmp_path: Path, write_model: Any, scored: Any) -> None:
    for name, shift in (("a", -1.0), ("b", 0.0)):
        scores = [5 + shift + 0.1 * (i % 7) * (1 if name == "a" else 1.5) for i in range(20)]
        write_model(tmp_path, name, {"t": scored(scores, "perplexity")})
    (row,) = compare(tmp_path, baseline="b", **FAST).rows
    assert row.difference < 0
    assert (row.unit, row.verdict, row.wins, row.losses) == ("raw", "better", 20, 0)


def test_zero_one_metric_where_lower_is_better(tmp_path: Path, write_model: Any, scored: Any) -> None:
    hib = {"t": {"error": False}}
    write_model(tmp_path, "a", {"t": scored([0.0] * 12, "error")}, higher_is_better=hib)
    write_model(tmp_path, "b", {"t": scored([1.0] * 10 + [0.0] * 2, "error")}, higher_is_better=hib)
    (row,) = compare(tmp_path, baseline="b", **FAST).rows
    assert (row.wins, row.losses, row.verdict) == (10, 0, "better")
    assert row.interval is not None
    assert row.interval.contains(row.difference)
    assert row.interval.high < 0


def test_unknown_direction_is_neither_better_nor_worse(tmp_path: Path, write_model: Any, scored: Any) -> None:
    for name, score in (("a", 1.0), ("b", 0.0)):
        write_model(tmp_path, name, {"t": scored([score] * 12)}, higher_is_better={})
    comparison = compare(tmp_path, baseline="b", **FAST)
    assert comparison.rows[0].verdict == "higher"
    assert any("whether higher is better" in note for note in comparison.notes)


def test_holm_covers_all_tasks_and_candidates_and_lengths_apart(
    tmp_path: Path, write_model: Any, scored: Any
) -> None:
    grid = {"length": [512] * 10 + [1024] * 10, "depth": [0.0] * 20}
    for name, wins in (("a", 10), ("b", 8), ("base", 0)):
        scores = [1.0] * wins + [0.0] * (20 - wins)
        write_model(tmp_path, name, {"t": scored(scores, **grid), "u": scored([0.0] * 20)})
    rows = compare(tmp_path, baseline="base", **FAST).rows
    assert [(row.task, row.candidate) for row in rows] == [("t", "a"), ("t", "b"), ("u", "a"), ("u", "b")]
    # p of 10:0 is 2/1024, of 8:0 is 2/256; four tests: times 4 and times 3.
    assert [row.p_adjusted for row in rows] == pytest.approx([8 / 1024, 6 / 256, 1, 1])
    subs = [sub for row in rows for sub in row.lengths]
    assert [(sub.length, sub.n, sub.wins) for sub in subs] == [
        (512, 10, 10),
        (1024, 10, 0),
        (512, 10, 8),
        (1024, 10, 0),
    ]
    assert {sub.family for sub in subs} == {4}
    assert subs[0].p_adjusted == pytest.approx(8 / 1024)


def test_sub_rows_use_the_methods_of_their_task(tmp_path: Path, write_model: Any, scored: Any) -> None:
    # At 512 every score is 0 or 1, but the task's are not: both lengths get the same test.
    grid = {"length": [512] * 6 + [1024] * 6, "depth": [0.0] * 12}
    write_model(tmp_path, "a", {"t": scored([1, 1, 1, 0, 1, 1] + [0.25] * 6, **grid)})
    write_model(tmp_path, "b", {"t": scored([0, 0, 1, 0, 0, 0] + [0.5] * 6, **grid)})
    (row,) = compare(tmp_path, baseline="b", **FAST).rows
    assert {sub.test for sub in row.lengths} == {"permutation"}


def test_samples_of_one_document_count_once(tmp_path: Path, write_model: Any, sample_line: Any) -> None:
    def lines(scores: list[float]) -> list[dict[str, Any]]:
        # Three samples of each document.
        return [sample_line({"id": i // 3, "q": i // 3}, {"score": s}) for i, s in enumerate(scores)]

    write_model(tmp_path, "a", {"t": lines([1, 1, 0, 1, 1, 1])})
    write_model(tmp_path, "b", {"t": lines([0, 1, 0, 0, 0, 1])})
    comparison = compare(tmp_path, baseline="b", **FAST)
    (row,) = comparison.rows
    assert (row.n, row.samples) == (2, 6)
    # 2/3 and 1 against 1/3 and 1/3.
    assert row.difference == pytest.approx(0.5)
    assert row.wins == 2
    assert any("6 samples of 2 documents" in note for note in comparison.notes)


def test_a_document_of_another_length_is_no_score(tmp_path: Path, write_model: Any, sample_line: Any) -> None:
    """lm-eval's RULER: a metric for each length, -1 where the document isn't of it."""

    def lines(short: list[float], long: list[float]) -> list[dict[str, Any]]:
        scores = [{"4096": -1.0, "512": s, "1024": -1.0} for s in short]
        scores += [{"4096": -1.0, "512": -1.0, "1024": s} for s in long]
        return [sample_line({"id": i, "q": i}, metrics) for i, metrics in enumerate(scores)]

    write_model(tmp_path, "a", {"t": lines([1, 1, 1, 0], [1, 0])})
    write_model(tmp_path, "b", {"t": lines([1, 0, 0, 0], [0, 0])})
    rows = compare(tmp_path, baseline="b", **FAST).rows
    assert [(r.metric, r.n, r.candidate_score.mean, r.baseline_score.mean) for r in rows] == [
        ("512", 4, 0.75, 0.25),
        ("1024", 2, 0.5, 0.0),
    ]
    assert all(r.binary for r in rows)


def test_metric_that_is_not_finite_is_noted_and_left_out(pair: Any) -> None:
    path = pair(a=[1.0, float("nan"), 0.0], b=[1.0, 0.0, 0.0])
    with pytest.raises(UserError, match="1 scores are not finite"):
        compare(path, **FAST)


def test_filters_are_rows_and_metrics_can_be_chosen(tmp_path: Path, write_model: Any, scored: Any) -> None:
    for name in ("a", "b"):
        loose, strict = scored([1, 0]), scored([0, 0])
        for sample in loose:
            sample["filter"] = "loose"
        for sample in strict:
            sample["filter"] = "strict"
        write_model(tmp_path, name, {"t": loose + strict, "u": scored([1, 0], "acc")})
    assert [(r.task, r.filter) for r in compare(tmp_path, **FAST).rows] == [
        ("t", "loose"),
        ("t", "strict"),
        ("u", "none"),
    ]
    assert [r.metric for r in compare(tmp_path, metrics=["acc"], **FAST).rows] == ["acc"]
    assert [r.filter for r in compare(tmp_path, metrics=["score,strict"], **FAST).rows] == ["strict"]
    with pytest.raises(UserError, match=r"no metric 'f1'\. These tasks have: acc"):
        compare(tmp_path, metrics=["f1"], **FAST)


def test_default_baseline_is_the_one_of_the_config_else_the_first(pair: Any) -> None:
    path = pair(a=[1, 0], b=[1, 0])
    assert compare(path, **FAST).baseline == "a"
    assert compare([f"{path}:b", f"{path}:a"], **FAST).baseline == "b"
    (path / "run.yaml").write_text("models: [{name: a}, {name: b}]\ncompare: {baseline: b}\n")
    assert compare(path, **FAST).baseline == "b"
    with pytest.raises(UserError, match=r"no model is called 'c'\. Use one of: a, b"):
        compare(path, baseline="c")


def test_two_directories_with_models_of_one_name(tmp_path: Path, write_model: Any, scored: Any) -> None:
    for folder in ("old", "new"):
        write_model(tmp_path / folder, "nsa", {"t": scored([1, 0])})
    comparison = compare([f"{tmp_path}/new:nsa", tmp_path / "old"], **FAST)
    assert [model.label for model in comparison.models] == ["nsa (new)", "nsa (old)"]
    assert comparison.baseline == "nsa (new)"


def test_one_model_is_not_a_comparison(pair: Any) -> None:
    path = pair(a=[1, 0])
    with pytest.raises(UserError, match="needs two models, got 1"):
        compare([path, f"{path}:a"])


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"resamples": 5}, {"seed": -1}, {"tasks": ["nope"]}])
def test_wrong_options(pair: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        compare(pair(a=[1, 0], b=[1, 1]), **wrong)


def test_round_trip_through_json(pair: Any) -> None:
    comparison = compare(pair(a=[1, 0, 1, 1], b=[0, 0, 1, 1]), baseline="b", **FAST)
    text = comparison.model_dump_json()
    assert Comparison.model_validate_json(text) == comparison
    assert json.loads(text)["rows"][0]["wins"] == 1


def test_same_seed_same_numbers_whatever_else_is_compared(
    tmp_path: Path, write_model: Any, scored: Any
) -> None:
    ramp = [i / 30 for i in range(30)]
    for name, scores in (("a", ramp[::-1]), ("b", ramp), ("c", [0.5] * 30)):
        write_model(tmp_path, name, {"t": scored(scores), "u": scored(ramp)})
    both = compare(tmp_path, baseline="b", **FAST).rows[0]
    alone = compare([f"{tmp_path}:b", f"{tmp_path}:a"], baseline="b", tasks=["t"], **FAST).rows[0]
    assert (both.interval, both.p) == (alone.interval, alone.p)
    assert compare(tmp_path, baseline="b", seed=1, **FAST).rows[0].interval != both.interval


def _row(a: list[float], b: list[float]) -> Any:
    def task(scores: list[float]) -> TaskResult:
        nothing = {"prompt_hash": "", "target_hash": "", "requests_hash": "", "settings": ()}
        samples = [
            Sample(doc_id=i, name=str(i), doc_hash=str(i), metrics={"score": score}, **nothing)
            for i, score in enumerate(scores)
        ]
        files = {"results_file": Path("r"), "samples_file": Path("s")}
        return TaskResult(
            name="t", filters={"none": tuple(samples)}, config={}, higher_is_better={"score": True}, **files
        )

    maker = RowMaker(confidence=0.95, resamples=200, seed=0, metrics=None)
    (row,) = maker.finish(maker.drafts(("b", task(b)), ("a", task(a))))
    return row


PAIRS = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, allow_nan=False, width=16))
SCORES = st.lists(st.tuples(PAIRS, PAIRS), min_size=1, max_size=25)


@settings(max_examples=40, deadline=None)
@given(SCORES)
def test_swapping_the_models_flips_the_sign_and_keeps_p(scores: list[tuple[float, float]]) -> None:
    a, b = (list(side) for side in zip(*scores, strict=True))
    one, two = _row(a, b), _row(b, a)
    assert one.difference == pytest.approx(-two.difference)
    assert one.p == pytest.approx(two.p)
    assert (one.wins, one.losses) == (two.losses, two.wins)
    assert one.minimum_detectable == pytest.approx(two.minimum_detectable)
    if one.binary:
        assert (one.interval.low, one.interval.high) == pytest.approx(
            (-two.interval.high, -two.interval.low), abs=1e-9
        )


@settings(max_examples=30, deadline=None)
@given(SCORES)
def test_rows_are_within_bounds(scores: list[tuple[float, float]]) -> None:
    row = _row(*(list(side) for side in zip(*scores, strict=True)))
    assert 0 <= row.p <= row.p_adjusted <= 1
    assert row.interval.low < row.interval.high
    assert row.interval.low - 1e-9 <= row.difference <= row.interval.high + 1e-9
    for estimate in (row.baseline_score, row.candidate_score):
        assert -1e-9 <= estimate.interval.low <= estimate.interval.high <= 1 + 1e-9


@settings(max_examples=20, deadline=None)
@given(st.lists(PAIRS, min_size=1, max_size=25))
def test_a_model_against_itself(scores: list[float]) -> None:
    row = _row(scores, scores)
    assert (row.difference, row.p, row.verdict) == (0, 1, "not distinguishable")
    assert row.interval.low < 0 < row.interval.high


def test_loaded_runs_can_be_compared(pair: Any) -> None:
    run = load_run(pair(a=[1, 0], b=[1, 1]))
    assert compare([run], **FAST).rows[0].n == 2
