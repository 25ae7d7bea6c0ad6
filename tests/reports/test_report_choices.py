"""Pictures of chosen blocks: what is shaded, forced, framed and written at their edges."""

from itertools import pairwise

import pytest

from nsa_reports import choice_picture, shades_in_words


def made(**changes):
    given = {
        "title": "a picture",
        "columns": [(0, 0), (1, 1), (2, 4), (5, 5)],
        "counts": [[8, 0, 3, 8], [8, 1, 8, 8]],
        "words": [" the", "\n"],
        "asked": 1,
        "most": 8,
        "marked": {1, 3},
        "forced": [{0, 5}, {0, 5}],
        **changes,
    }
    return choice_picture(**given)


def test_cells_are_shaded_by_quarters_and_neighbours_joined():
    picture = made(counts=[[8, 2, 1, 8], [8, 0, 8, 8]])
    # Row 0: 2 and 1 of 8 are the weakest shade, side by side; row 1: all 8 the strongest.
    assert picture.shades == ("M1 0h2v.9h-2z", "", "", "M2 1h1v.9h-1z")
    assert picture.forced == "M0 0h1v.9h-1zM3 0h1v.9h-1zM0 1h1v.9h-1zM3 1h1v.9h-1z"


@pytest.mark.parametrize(
    ("count", "shade"), [(0, None), (1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3), (8, 3), (99, 3)]
)
def test_each_shade_ends_at_its_quarter(count, shade):
    picture = made(columns=[(7, 7)], counts=[[count]], words=["x"], forced=[set()], marked=set())
    assert [index for index, path in enumerate(picture.shades) if path] == ([] if shade is None else [shade])


def test_a_column_of_several_blocks_is_never_forced():
    picture = made(forced=[{2}, {3, 4}])
    assert picture.forced == ""


def test_the_answer_is_framed_wherever_its_blocks_lie():
    picture = made()
    [frame] = picture.marked  # block 1 and, beside it, the column of blocks 2 to 4
    assert (frame.x, frame.width) == (picture.left + picture.column, 2 * picture.column)
    assert frame.label == "blocks 1 to 4"
    [shared] = picture.shared
    assert shared.label == "blocks 2 to 4"
    assert [span.label for span in made(marked={0, 5}).marked] == ["block 0", "block 5"]


def test_rows_say_their_token_and_the_reply_stands_below_a_line():
    picture = made()
    assert [(row.text, row.reply) for row in picture.rows] == [("the", False), ("↵", True)]
    assert picture.border == picture.top + picture.row
    assert made(asked=2).border is None
    assert [row.text for row in made(words=["  ", "\t"]).rows] == ["␣", "⇥"]


def test_numbers_of_blocks_leave_each_other_room():
    columns = [(block, block) for block in range(96)]
    picture = made(columns=columns, counts=[[0] * 96] * 2, marked={50})
    places = [tick.x for tick in picture.ticks]
    assert (picture.ticks[0].label, picture.ticks[-1].label) == ("0", "95")
    assert all(after - before >= 50 for before, after in pairwise(places))
    assert picture.right - picture.left == 96 * picture.column


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a picture of 2 queries and 4 columns needs"):
        made(words=["one"])
    with pytest.raises(ValueError, match="a picture of 2 queries and 4 columns needs"):
        made(counts=[[1, 2, 3]] * 2)


@pytest.mark.parametrize(
    ("most", "words"),
    [(8, ("1 to 2", "3 to 4", "5 to 6", "7 to 8")), (4, ("1", "2", "3", "4")), (2, ("", "1", "", "2"))],
)
def test_shades_in_words(most, words):
    assert shades_in_words(most) == words
