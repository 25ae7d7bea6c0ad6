"""Answers of replies: worked out by hand from math-verify's order, the last box, and the rule of thinking."""

import threading

import pytest

pytest.importorskip("math_verify", reason="pip install 'nsa-eval[reasoning]'")

from nsa_tasks.reasoning import grading
from nsa_tasks.reasoning.grading import after_thinking, last_box, read_answer, read_gold, same, votes
from nsa_tasks.replies import RIGHT, SILENT

CASES = [
    # gold, reply, whether it is right
    ("033", r"So it is \boxed{33}.", True),  # AIME pads to three digits
    ("33", r"So it is \boxed{033}.", True),
    ("33", r"So it is \boxed{330}.", False),
    ("1234", r"\boxed{1,234}", True),
    ("1234", r"\boxed{1{,}234}", True),
    ("1234", "The answer is 1,234.", True),
    (r"1{,}234", r"\boxed{1234}", True),
    (r"\text{Evelyn}", r"The fastest is \boxed{\text{Evelyn}}.", True),
    (r"\text{Evelyn}", r"The fastest is \boxed{\text{Carla}}.", False),
    (r"\frac{1}{2}", r"\boxed{0.5}", True),
    (r"\frac{1}{2}", r"\boxed{\dfrac12}", True),
    (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", True),
    (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(\pi/2, 3)}", False),
    ("5", r"\boxed{x=5}", True),
    ("34", r"\boxed{33}. Wait, rechecking gives \boxed{34}.", True),  # the last box, alone
    ("33", r"\boxed{33}. Wait, rechecking gives \boxed{34}.", False),
    ("33", r"\boxed{33} and later \boxed{}", True),  # an empty box is none
    ("33", r"\boxed{33} and then \boxed{", True),  # nor is one that never closes
    ("6", r"\boxed{6}. The final answer is 5.", True),  # boxes before phrases
    ("5", r"\fbox{5}", True),
    ("9", "so 7, then 9", True),  # without a box the last number counts
    ("9", "9 is more than 7", False),
    ("4", "", False),
    ("4", "   \n", False),
    ("4", "no idea", False),
    ("4", "<think>2 + 2 = 4, let me check: 4", False),  # thinking that never ended
    ("4", r"<think>\boxed{5}</think> It is \boxed{4}.", True),
    ("5", r"<think>\boxed{5}</think> I don't know.", False),
    ("4", r"a</think>b <think>c</think> \boxed{4}", True),
    ("4", r"\boxed{4} </think>", False),  # nothing after the last closing tag
    ("4", r"<think>hm</think> \boxed{4} <think> or 5", True),
]


@pytest.mark.parametrize(("gold", "reply", "right"), CASES, ids=[f"{c[0]}: {c[1][:40]}" for c in CASES])
def test_replies_by_hand(gold, reply, right):
    assert same(read_gold(gold), read_answer(reply)) is right


def test_a_prompt_that_opens_thinking_makes_its_end_needed():
    assert grading.opens_thinking("<|assistant|><think>\n")
    assert not grading.opens_thinking("<|assistant|>")
    assert after_thinking("so 4", opened=True) is None
    assert after_thinking("so</think> 4", opened=True) == " 4"
    assert after_thinking("so 4") == "so 4"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{a{b}{c{d}}}", "a{b}{c{d}}"),
        (r"\boxed{1}\boxed{2}", "2"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed {7}", "7"),
        (r"\boxed{", None),
        (r"a } \boxed{2} } {", "2"),
        (r"\boxed{3} \boxed{ \boxed{", "3"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"x \\{y} \fbox{4}", "4"),
        (r"\boxed{1 \boxed{2}", "2"),
        (r"\boxed{ } \boxed{9} \boxed{ }", "9"),
        ("boxed{3}", None),
        ("", None),
    ],
)
def test_the_last_box_that_closes(text, content):
    assert last_box(text) == content


def test_why_there_is_no_answer_is_told():
    assert read_answer("<think>4").why == "thinking never ended"
    assert read_answer("").why == "no answer"
    assert read_answer(r"\boxed{4}").why == ""


def test_equal_answers_vote_alike_however_they_are_written():
    gold = read_gold(r"\frac{3}{4}")
    replies = [
        r"\boxed{0.5}",
        r"\boxed{0.75}",
        r"\boxed{\frac12}",
        "",
        r"\boxed{7}",
        r"\boxed{3/4}",
        r"\boxed{1/2}",
    ]
    assert votes(gold, [read_answer(reply) for reply in replies]) == [1, RIGHT, 1, SILENT, 2, RIGHT, 1]


def test_golds_are_tried_against_themselves():
    assert grading.failing_golds(["33", r"\text{Evelyn}", "1{,}234", r"x \in [-2,7]"]) == []
    assert grading.failing_golds(["33", "", r"\frac{"]) == ["", r"\frac{"]


def test_boxes_without_end_are_read_in_one_pass():
    text = r"\boxed{7} " + "\\boxed{" * 200_000  # what a model that repeats itself leaves
    assert last_box(text) == "7"


def test_a_comparison_that_would_never_end_is_ended(monkeypatch):
    monkeypatch.setattr(grading, "TIME_LIMIT", 1)
    assert not same(read_gold("5"), read_answer(r"\boxed{9^{9^{9}}}"))


def test_off_the_main_thread_there_is_no_time_limit():
    found = []
    thread = threading.Thread(target=lambda: found.append(same(read_gold("4"), read_answer(r"\boxed{4}"))))
    thread.start()
    thread.join()
    assert found == [True]


def test_a_missing_math_verify_names_the_extra(monkeypatch):
    grading._math_verify.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(grading.NoMathVerifyError, match=r"pip install 'nsa-eval\[reasoning\]'"):
        read_gold("4")
    monkeypatch.undo()
    grading._math_verify.cache_clear()
