"""LongBench v2's letter, columns and denominators, worked by hand from the definition."""

import pytest

from nsa_tasks.longbench2.prompts import cut_middle, fill
from nsa_tasks.longbench2.scoring import columns, describe, extract, score, score_document

DOC = {"answer": "B", "difficulty": "easy", "length_class": "medium"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The correct answer is (B).", "B"),
        ("The correct answer is B", "B"),
        ("**The correct answer is (C)**", "C"),
        ("The correct answer is **(D)** since", "D"),
        ("The correct answer is *A*", "A"),
        ("The correct answer is (A", None),  # the second form wants the letter right after "is "
        ("The correct answer is (insert answer here)", None),
        ("the correct answer is (B)", None),
        ("The correct answer is: (B)", None),
        ("The correct answer is\n(B)", None),
        ("The correct answer is (E)", None),
        ("The correct answer is (b)", None),
        ("The correct answer is Brussels", "B"),
        ("The correct answer is A. No: The correct answer is (C)", "C"),  # parentheses are looked for first
        ("The correct answer is (A). The correct answer is (C)", "A"),
        ("(B)", None),
        ("", None),
    ],
)
def test_the_letter_of_a_reply(reply, letter):
    assert extract(reply) == letter


@pytest.mark.parametrize(
    ("reply", "plain", "compensated"),
    [
        ("The correct answer is (B)", 1.0, 1.0),
        ("The correct answer is (C)", 0.0, 0.0),
        ("I can't tell", 0.0, 0.25),
        (" ", 0.0, 0.25),
    ],
)
def test_no_letter_is_wrong_or_a_guess(reply, plain, compensated):
    assert score(reply, "B") == plain
    assert score(reply, "B", compensated=True) == compensated


@pytest.mark.parametrize(
    ("difficulty", "length", "expected"),
    [
        ("easy", "short", ("overall", "easy", "short")),
        ("hard", "medium", ("overall", "hard", "medium")),
        ("hard", "long", ("overall", "hard", "long")),
        ("unheard of", "unheard of", ("overall", "hard", "long")),  # the official else-branches
    ],
)
def test_columns(difficulty, length, expected):
    assert columns({"difficulty": difficulty, "length_class": length}) == expected


def test_an_empty_reply_counts_in_no_column():
    found = score_document(DOC, [("",)], compensated=True, requests=1)
    assert found == {"answered": 0.0}
    assert list(score_document(DOC, [("x",)], compensated=True, requests=1)) == [
        "overall", "easy", "medium", "answered", "extracted",
    ]  # fmt: skip


def test_both_replies_of_a_dialogue_have_to_be_there():
    right = "The correct answer is (B)"
    assert score_document(DOC, [("thought", right)], compensated=False, requests=2)["overall"] == 1.0
    for broken in (("",), ("thought", ""), ("thought",)):
        assert score_document(DOC, [broken], compensated=False, requests=2) == {"answered": 0.0}


def test_the_thoughts_alone_are_no_answer():
    thought = "The correct answer is (B)"
    found = score_document(DOC, [(thought, "I don't know")], compensated=False, requests=2)
    assert (found["overall"], found["extracted"]) == (0.0, 0.0)


def test_several_replies_are_averaged_over_those_that_count():
    replies = [("The correct answer is (B)",), ("",), ("The correct answer is (A)",), ("hm",)]
    found = score_document(DOC, replies, compensated=False, requests=1)
    assert found["overall"] == found["easy"] == found["medium"] == pytest.approx(1 / 3)
    assert found["answered"] == 0.75
    assert found["extracted"] == pytest.approx(2 / 3)


def test_what_a_wrong_reply_holds_is_said():
    assert describe(("The correct answer is (B)",), "B") == ""
    assert describe(("The correct answer is (C)",), "B") == "answers C"
    assert describe(("Perhaps",), "B") == "no answer in the form asked for"
    assert describe(("thought", ""), "B") == "empty reply: not counted"


RECORD = {"question": " Which? ", "choice_A": "a\n", "choice_B": "b", "choice_C": "\tc", "choice_D": "d"}


def test_fields_are_stripped_and_filled_in_one_after_the_other():
    template = "<$DOC$> $Q$ $C_A$/$C_B$/$C_C$/$C_D$ $COT$"
    assert fill(template, RECORD, context="\n text \n") == "<text> Which? a/b/c/d "
    assert fill(template, RECORD, context="x", reply=" so \n") == "<x> Which? a/b/c/d so"
    # The official order: a mark that stands in the text is filled in with it.
    assert fill(template, RECORD, context="see $C_B$ and $DOC$") == "<see b and $DOC$> Which? a/b/c/d "


class Characters:
    """A tokenizer of one token a character, between <s> and </s>."""

    def __call__(self, text, verbose):
        return {"input_ids": [-1, *map(ord, text), -2]}

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(i) for i in ids if i >= 0 or not skip_special_tokens)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (12, "0123456789"),  # ten characters and both special tokens: nothing to cut
        (11, "012356789"),  # <s>0123 and, one more, 56789</s>
        (10, "01236789"),
        (7, "01789"),  # <s>01 and 789</s>
        (2, ""),
    ],
)
def test_a_long_prompt_keeps_its_two_halves(limit, kept):
    assert cut_middle("0123456789", Characters(), limit) == (kept, 12)
