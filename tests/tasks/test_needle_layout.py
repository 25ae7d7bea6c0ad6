"""Where needles stand in the filler."""

import numpy as np
import pytest

from nsa_tasks.haystack import sentence_ends
from nsa_tasks.needle.layout import insertion_point, lay_out

FILLER = "First one. Second one. Third one. Fourth one."  # ends at 10, 22, 33, 45


@pytest.mark.parametrize(
    ("depth", "point"),
    [
        (0, 0),
        (1, 0),  # int(0.45) = 0: no sentence end before it
        (22, 0),  # int(9.9) = 9 is inside the first sentence
        (23, 10),  # int(10.35) = 10, exactly a sentence end
        (48, 10),  # int(21.6) = 21
        (49, 22),  # int(22.05) = 22
        (50, 22),
        (99, 33),  # int(44.55) = 44
        (100, 45),
    ],
)
def test_depth_moves_back_to_the_previous_sentence_end(depth, point):
    assert insertion_point(len(FILLER), depth, sentence_ends(FILLER)) == point


def test_text_without_a_sentence_end_takes_the_needle_at_its_start():
    assert insertion_point(100, 60, np.array([], dtype=np.int64)) == 0
    assert insertion_point(100, 100, np.array([], dtype=np.int64)) == 100


@pytest.mark.parametrize(
    ("depth", "context"),
    [
        (0, "NEEDLE. First one. Second one. Third one. Fourth one."),
        (50, "First one. Second one. NEEDLE. Third one. Fourth one."),
        (100, "First one. Second one. Third one. Fourth one. NEEDLE."),
    ],
)
def test_needle_is_parted_by_single_spaces(depth, context):
    layout = lay_out(FILLER, ["NEEDLE."], [depth], sentence_ends(FILLER), " ")
    assert layout.context == context
    start, end = layout.spans[0]
    assert context[start:end] == "NEEDLE."


def test_needle_ends_its_paragraph_and_text_without_spaces_is_parted():
    text = "One.\n\nTwo."
    assert lay_out(text, ["N."], [50], sentence_ends(text), " ").context == "One. N.\n\nTwo."
    chinese = "\u4e00\u4e8c\u4e09\u3002\u56db\u4e94\u516d\u3002"
    assert (
        lay_out(chinese, ["N."], [50], sentence_ends(chinese), " ").context
        == f"{chinese[:4]} N. {chinese[4:]}"
    )


def test_extreme_depths_stay_outermost_among_several_needles():
    ends = sentence_ends(FILLER)
    first = lay_out(FILLER, ["A.", "B."], [0, 5], ends, " ")
    assert first.context.startswith("A. B. First")
    last = lay_out(FILLER, ["A.", "B."], [100, 99.9], ends, " ")
    assert last.context.endswith("Third one. B. Fourth one. A.")
    for layout, needles in ((first, ("A.", "B.")), (last, ("A.", "B."))):
        assert tuple(layout.context[a:b] for a, b in layout.spans) == needles


def test_empty_filler_holds_only_needles():
    assert lay_out("", ["A.", "B."], [0, 100], sentence_ends(""), " ").context == "A. B."


def test_sentence_ends_know_quotes_and_lines_and_no_decimals():
    assert sentence_ends('He said "yes." Then 3.14 came! Really?').tolist() == [14, 30, 38]
    assert sentence_ends("a line\nanother\n\nend").tolist() == [6, 14]
