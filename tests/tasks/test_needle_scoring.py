"""Golden scorer cases, worked out by hand from the definitions in the family's README."""

import pytest

from nsa_tasks._random import Draw
from nsa_tasks.needle.prompts import draw_facts, values_in
from nsa_tasks.needle.scoring import clean, describe_failure, process_many, process_single


@pytest.mark.parametrize(
    ("reply", "answer", "score"),
    [
        (" 4829105.", "4829105", 1.0),
        ("It is **4829105**, I think.", "4829105", 1.0),
        ("\n\n4829105", "4829105", 1.0),
        ("", "4829105", 0.0),
        ("482910", "4829105", 0.0),  # cut off
        ("48 29105", "4829105", 0.0),
        ("4,829,105", "4829105", 0.0),  # exact: no thousands separators
        ("94829105", "4829105", 1.0),  # containment is all that is asked
        ("Amber-anvil", "amber-anvil", 0.0),  # letter case counts
        ("amber-anvil", "amber-anvil", 1.0),
        ("amber anvil", "amber-anvil", 0.0),
        (
            "eat a sandwich and sit in Dolores Park on a sunny day.",
            "eat a sandwich and sit in Dolores Park on a sunny day",
            1.0,
        ),
        ("eat a sandwich in Dolores Park", "eat a sandwich and sit in Dolores Park on a sunny day", 0.0),
    ],
)
def test_single_needle_scores_exact_containment(reply, answer, score):
    assert process_single({"outputs": [answer]}, [reply]) == {"score": score}


@pytest.mark.parametrize(
    ("reply", "answers", "score"),
    [
        ("1111111, 2222222, 3333333 and 4444444", ["1111111", "2222222", "3333333", "4444444"], 1.0),
        ("4444444 1111111", ["1111111", "2222222", "3333333", "4444444"], 0.5),  # the order is free
        ("1111111 1111111 1111111 1111111", ["1111111", "2222222", "3333333", "4444444"], 0.25),
        ("- 1111111\n- 2222222\n", ["1111111", "2222222"], 1.0),
        ("AMBER-ANVIL", ["amber-anvil"], 1.0),  # case is ignored here
        ("amber\x00anvil", ["amber\nanvil"], 1.0),  # control characters become newlines before matching
        ("amber\tanvil", ["amber anvil"], 0.0),
        ("none", ["1111111", "2222222", "3333333"], 0.0),
        ("2222222", ["1111111", "2222222", "3333333"], 1 / 3),
    ],
)
def test_many_needles_score_the_share_of_answers_found(reply, answers, score):
    assert process_many({"outputs": answers}, [reply]) == {"score": pytest.approx(score)}


def test_clean_strips_before_and_after_replacing_control_characters():
    assert clean("  \x01 a\x1fb\x00 ") == "a\nb"
    assert clean("a\x7fb") == "a\x7fb"  # only \x00-\x1f


@pytest.mark.parametrize(
    ("reply", "answers", "reason"),
    [
        (" 4829105.", ["4829105"], ""),
        (" 7777777.", ["4829105"], "another needle's value"),
        ("", ["4829105"], "nothing"),
        (" \n\x00 ", ["4829105"], "nothing"),
        (" 482910", ["4829105"], "something else"),
        ("I do not know.", ["4829105"], "something else"),
        ("1111111, 2222222", ["1111111", "2222222", "3333333"], "2 of 3 values"),
        ("1111111 and 8888888", ["1111111", "2222222"], "1 of 2 values and another needle's value"),
        ("2222222 1111111", ["1111111", "2222222"], ""),
    ],
)
def test_a_failed_reply_says_what_it_is(reply, answers, reason):
    assert describe_failure(reply, answers, ["7777777", "8888888"]) == reason


def test_a_failure_is_told_by_the_rule_that_scores():
    """Letter case counts where there is one needle, and doesn't where there are several."""
    assert describe_failure("AMBER-ANVIL", ["amber-anvil"], [], exact=True) == "something else"
    assert describe_failure("AMBER-ANVIL", ["amber-anvil"], []) == ""


@pytest.mark.parametrize("needle", ["number", "uuid", "word"])
@pytest.mark.parametrize("key", ["words", "uuid"])
def test_every_value_of_a_prompt_is_found_again(needle, key):
    facts = draw_facts(Draw(5, "facts", 0), needle=needle, key=key, keys=3, values=2)
    prompt = facts.prompt(" It rained. ".join(facts.needles))
    assert len(values_in(prompt)) == 6
    assert all(value in " ".join(facts.needles) for value in values_in(prompt))
    assert set(facts.answers) < set(values_in(prompt))
