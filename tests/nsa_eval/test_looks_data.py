"""Looks as data: recall, what counts as selected, what had no choice, and what a right answer is."""

import pytest

from nsa_eval.errors import UserError
from nsa_eval.looks import AnswerLook, BlockGrid, Look, LooksSheet, NotLooked, answered_right, read_looks

GRID = BlockGrid(layers=2, groups=2, select_block=8, select_count=4, first_blocks=1, last_blocks=2, window=16)


def answer(held=(1, 0), by_token=(1, 1), *, forced=False, in_window=False):
    return AnswerLook(
        first=20, last=21, blocks=(2,), held=held, by_token=by_token, forced=forced, in_window=in_window
    )


def look(*answers, prompt_tokens=100):
    return Look(grid=GRID, prompt_tokens=prompt_tokens, answers=answers)


def test_recall_is_the_share_of_layers_and_groups_over_all_answers():
    assert look(answer((1, 0))).share == 0.25
    assert look(answer((2, 2))).share == 1.0
    both = look(answer((1, 0)), answer((2, 1)))
    assert both.share == 0.5
    assert both.by_layer == (0.75, 0.25)


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ([answer(by_token=(1, 3))], True),
        ([answer(by_token=(1, 0))], False),
        ([answer((0, 0), by_token=(1, 1))], True),  # nobody has all of it at once
        ([answer(by_token=(1, 1)), answer(by_token=(0, 1))], False),
    ],
)
def test_selected_means_every_token_of_every_answer(answers, found):
    assert look(*answers).found is found


@pytest.mark.parametrize(
    ("answers", "prompt_tokens", "always"),
    [
        ([answer()], 30, True),  # with 2 tokens of the reply just within 4 blocks of 8
        ([answer()], 31, False),
        ([answer(forced=True)], 100, True),
        ([answer(forced=True), answer()], 100, False),
    ],
)
def test_nothing_to_choose_within_reach_or_where_all_is_forced(answers, prompt_tokens, always):
    assert look(*answers, prompt_tokens=prompt_tokens).always is always


def test_forced_blocks_are_those_of_the_kernels():
    from nsa_kernels import BlockGeometry
    from nsa_models.looking import forced_blocks

    geometry = BlockGeometry(block=8, stride=4, select_block=8, select_count=4, window=16)
    for position in (0, 7, 8, 16, 99):
        assert GRID.forced(position) == set(forced_blocks(position, geometry))


@pytest.mark.parametrize(
    ("metrics", "right"),
    [
        ({"score": 1.0}, True),
        ({"score": 0.5}, False),
        ({"nll": 3.0, "greedy": 1.0}, True),
        ({"nll": 3.0, "greedy": 0.0}, False),
        ({"nll": 3.0}, None),
    ],
)
def test_right_is_a_full_score_of_the_first_metric_of_which_more_is_better(metrics, right):
    directions = {"score": True, "nll": False, "greedy": True}
    assert answered_right(metrics, list(metrics), directions) is right


def test_a_sheet_comes_back_as_it_was_written(tmp_path):
    sheet = LooksSheet(
        per_cell=2, seconds=1.5, tasks={"t": {"0": look(answer()), "1": NotLooked(why="its prompt was cut")}}
    )
    file = tmp_path / "looks.json"
    file.write_text(sheet.model_dump_json())
    again = read_looks(file)
    assert again == sheet
    assert list(again.of("t")) == ["0"]
    assert again.left_out("t") == {"1": "its prompt was cut"}
    assert again.of("other") == {}


@pytest.mark.parametrize("text", ["", "[]", '{"per_cell": "many"}', '{"per_cell": 1, "more": 2}'])
def test_a_damaged_sheet_is_named(tmp_path, text):
    file = tmp_path / "looks.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"looks\.json"):
        read_looks(file)
