"""RULER's two scorers, with expected values worked out by hand from the official definition."""

import pytest

from nsa_tasks.ruler.scoring import describe_failure, process_all, process_part
from nsa_tasks.string_match import clean, string_match_all, string_match_part


@pytest.mark.parametrize(
    ("reply", "answers", "all_score", "part_score"),
    [
        ("1234567", ["1234567"], 1, 1),
        ("It is 91234567.", ["1234567"], 1, 1),  # anywhere in the reply, inside of a longer number too
        ("1 234567", ["1234567"], 0, 0),
        ("The answer: FALCON", ["falcon"], 1, 1),  # case is ignored on both sides
        ("falcon", ["FALCON"], 1, 1),
        ("alpha, gamma", ["alpha", "beta", "gamma"], 2 / 3, 1),
        ("nothing", ["alpha", "beta"], 0, 0),
        ("", ["alpha"], 0, 0),
        ("alpha", ["alpha", "alpha"], 1, 1),  # an answer that is listed twice counts twice
        ("beta", ["alpha", "alpha", "beta"], 1 / 3, 1),
        ("4", ["4", "14"], 1 / 2, 1),
        ("14", ["4", "14"], 1, 1),  # an answer that is part of another is found with it
        ("France.\nGermany", ["germany"], 1, 1),
        ("France\x00Germany", ["France\nGermany"], 1, 1),  # a control character becomes a newline
        ("France\tGermany", ["France Germany"], 0, 0),  # a tab too, so it is no space any more
        ("in\r\nthe sun", ["in\n\nthe sun"], 1, 1),  # each by itself: two of them are two newlines
        ("   alpha ", [" alpha"], 0, 0),  # the reply is stripped, the answer isn't
        ("\x00 alpha", ["\n alpha"], 0, 0),  # stripped again once control characters are newlines
        ("caf\u00e9", ["CAF\u00c9"], 1, 1),
        ("\u0130", ["i\u0307"], 1, 1),  # Python's lower(): the dotted capital i becomes two characters
        ("\x7f alpha", ["\x7f"], 1, 1),  # DEL is no control character of the official clean-up
    ],
)
def test_both_string_matches(reply, answers, all_score, part_score):
    assert string_match_all(reply, answers) == pytest.approx(all_score)
    assert string_match_part(reply, answers) == part_score
    doc = {"outputs": answers}
    assert process_all(doc, [reply]) == {"score": pytest.approx(all_score)}
    assert process_part(doc, [reply]) == {"score": part_score}


def test_an_empty_answer_is_in_every_reply():
    assert string_match_all("", [""]) == string_match_part("x", [""]) == 1


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  a  ", "a"),
        ("\x1fa\x1f", "a"),  # U+001F is white space to strip()
        ("\x01a\x02b\x03", "a\nb"),
        ("\x01 a", "a"),
        ("a\x00\x00b", "a\n\nb"),
        ("a\u2028b", "a\u2028b"),
    ],
)
def test_clean_up(raw, cleaned):
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    ("reply", "any_counts", "said"),
    [
        ("a b", False, ""),
        ("a", False, "1 of 2 answers"),
        ("a", True, ""),
        ("\x00", False, "nothing"),
        ("c", True, "something else"),
    ],
)
def test_failures_are_told_apart(reply, any_counts, said):
    assert describe_failure(reply, ["a", "b"], any_counts=any_counts) == said
