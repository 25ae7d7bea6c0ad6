"""The section of replies: lengths, cuts, and several replies to a problem."""

import pytest

from nsa_eval.material import Material
from nsa_eval.report import render_report
from nsa_eval.results import load_run
from nsa_eval.sections import replies


def run_with(tmp_path, write_model, scored, by_model):
    """A run whose samples know of their replies: {model: [{new_tokens, finished, votes}, ...]}."""
    for name, found in by_model.items():
        write_model(tmp_path, name, {"math": scored([1.0] * len(found))})
    run = load_run(tmp_path)
    models = {}
    for name, found in by_model.items():
        task = run.models[name].tasks["math"]
        samples = tuple(
            sample.model_copy(update=update)
            for sample, update in zip(task.filters["none"], found, strict=True)
        )
        changed = task.model_copy(update={"filters": {"none": samples}})
        models[name] = run.models[name].model_copy(update={"tasks": {"math": changed}})
    return run.model_copy(update={"models": models})


ONE = {"new_tokens": (10, 20, 30, 40), "finished": (True, True, True, False), "votes": (0, 0, 1, 0)}
TWO = {"new_tokens": (40, 40, 5, 5), "finished": (False, False, True, True), "votes": (-1, 1, 1, 2)}


def test_lengths_and_cuts_by_hand(tmp_path, write_model, scored):
    data = replies.build(Material(run_with(tmp_path, write_model, scored, {"nsa": [ONE, TWO]})))
    [row] = data.lengths
    assert (row.task, row.model, row.replies, row.cut, row.cut_share) == ("math", "nsa", 8, 3, "37.5 %")
    assert (row.right_though_cut, row.silent) == (1, 1)
    assert (row.median, row.longest) == (25, 40)  # of 5 5 10 20 30 40 40 40
    assert len(row.bars) == 24
    assert row.bars[-1] == 24  # three of 40: the tallest
    assert sum(bar > 0 for bar in row.bars) == 5


def test_votes_by_hand(tmp_path, write_model, scored):
    data = replies.build(Material(run_with(tmp_path, write_model, scored, {"nsa": [ONE, TWO]})))
    [task] = data.votes
    assert (task.task, task.k) == ("math", (1, 2, 4))
    [row] = task.models
    assert (row.problems, row.replies, row.average) == (2, 4, "37.5")
    assert row.error == "37.5"  # means .75 and 0: their standard deviation .53 over the root of 2
    assert row.replies_error == "12.5"  # sqrt(.75 * .25 / 3) / 2
    assert [point.value for point in row.passed] == ["37.5", "50.0", "50.0"]
    # Problem 1: pairs of 0 0 0 1: 3 agree on right, 3 tie.
    assert [point.value for point in row.majority] == ["37.5", "37.5", "50.0"]


def test_a_score_that_never_varies_still_has_an_interval(tmp_path, write_model, scored):
    right = {"new_tokens": (5, 5), "finished": (True, True), "votes": (0, 0)}
    data = replies.build(Material(run_with(tmp_path, write_model, scored, {"nsa": [right] * 10})))
    [row] = data.votes[0].models
    assert row.passed[0].value == "100.0"
    low, high = row.passed[0].interval.split(" to ")
    assert float(low) < 75
    assert high == "100.0"
    assert row.error == row.replies_error == ""


def test_tasks_without_votes_show_lengths_alone(tmp_path, write_model, scored):
    plain = {"new_tokens": (5,), "finished": (True,)}
    data = replies.build(Material(run_with(tmp_path, write_model, scored, {"nsa": [plain, plain]})))
    assert data.votes == ()
    assert (data.lengths[0].silent, data.says_answers) == (None, False)


def test_nothing_is_shown_where_nothing_is_known(tmp_path, write_model, scored):
    assert replies.build(Material(run_with(tmp_path, write_model, scored, {"nsa": [{}, {}]}))) is None


@pytest.mark.parametrize("found", [[ONE, TWO], [{"new_tokens": (3,), "finished": (True,)}] * 2])
def test_the_page_holds_it(tmp_path, write_model, scored, found):
    run = run_with(tmp_path, write_model, scored, {"dense": found, "nsa": found})
    page = tmp_path / "report.html"
    render_report(tmp_path, out=page, run=run)
    text = page.read_text(encoding="utf-8")
    assert '<section id="replies">' in text
    assert ("pass@k" in text) is ("votes" in found[0])
