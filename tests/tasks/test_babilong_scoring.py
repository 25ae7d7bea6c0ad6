"""BABILong's rule, worked by hand from the definition, with its odd cases."""

import pytest

from nsa_tasks.babilong.scoring import LABELS, clean, describe, is_right, process_results
from nsa_tasks.babilong.stories import NAMES

WHERE = "Where is Mary?"


@pytest.mark.parametrize(
    ("task", "target", "reply", "question", "right"),
    [
        ("qa1", "kitchen", "kitchen", WHERE, True),
        ("qa1", "kitchen", " The most recent location of Mary is KITCHEN. Not the garden.", WHERE, True),
        ("qa1", "kitchen", "The kitchen or the garden", WHERE, False),  # not the only label
        ("qa1", "kitchen", "Well. The kitchen", WHERE, False),  # after the first sentence
        ("qa1", "kitchen", "kitchen<context>garden", WHERE, True),
        ("qa1", "kitchen", "kitchen\n<EXAMPLE>\ngarden", WHERE, True),
        ("qa1", "kitchen", "kitchen Question: where? garden", WHERE, False),  # that cut never acts
        ("qa1", "kitchen", "kitchenette", WHERE, True),  # labels are parts of the text
        ("qa1", "kitchen", "", WHERE, False),
        ("qa1", "kitchen", "at home", WHERE, False),
        # A label of the question is set aside: it is no second answer ...
        (
            "qa3",
            "garden",
            "Before the kitchen it was in the garden",
            "Where was it before the kitchen?",
            True,
        ),
        # ... and never a first one.
        ("qa3", "kitchen", "kitchen", "Where was it before the kitchen?", False),
        ("qa4", "office", "the office is south of the hallway", "What is the hallway north of?", True),
        ("qa5", "Fred", "Fred", "Who gave the apple to Bill?", True),
        ("qa5", "Fred", "Fred gave it to Bill", "Who gave the apple to Bill?", True),
        ("qa5", "Fred", "Fred and Jeff", "Who gave the apple to Bill?", False),
        ("qa6", "no", "I do not know", "Is Mary in the garden?", True),  # "not" and "know" hold "no"
        ("qa6", "no", "Nobody knows", "Is Mary in the garden?", True),
        ("qa6", "yes", "yes, I do not doubt it", "Is Mary in the garden?", False),
        ("qa6", "yes", "Yesterday", "Is Mary in the garden?", True),
        ("qa6", "no", "none", "Is Mary north of the garden?", False),  # "north" sets "no" aside
        ("qa7", "one", "someone", "How many?", True),
        ("qa7", "none", "none", "How many?", False),  # "none" holds "one" too: a second label
        ("qa7", "none", "n o n e", "How many?", False),
        ("qa8", "apple,milk", "apple, milk", "What is Mary carrying?", True),
        ("qa8", "apple,milk", "milk and apple", "What is Mary carrying?", True),
        ("qa8", "apple,milk", "apple", "What is Mary carrying?", False),
        ("qa8", "apple,milk", "apple, milk, football", "What is Mary carrying?", False),
        ("qa8", "nothing", "nothing", "What is Mary carrying?", True),
        ("qa8", "apple", "apple", "Is the apple gone?", False),
        ("qa10", "maybe", "maybe", "Is Mary in the garden?", True),
        ("qa10", "no", "I can not say: maybe", "Is Mary in the garden?", False),
        ("qa19", "s,e", "s,e", "How do you go there?", True),  # 3 characters: one label with a comma
        ("qa19", "s,e", "s, e", "How do you go there?", False),
        ("qa19", "s,e", "e,s,e", "How do you go there?", False),  # holds e,s and s,e
        ("qa20", "tired", "He is tired", "Why did Sumit go to the bedroom?", True),
    ],
)
def test_a_reply_is_right_by_its_labels(task, target, reply, question, right):
    assert is_right(task, target, reply, question) is right
    doc = {"qa": task, "target": target, "question": question}
    assert process_results(doc, [reply]) == {"score": float(right)}


def test_a_reply_ends_at_its_first_full_stop_or_tag():
    assert clean("The Garden. No") == "the garden"
    assert clean("a<context>b<example>c") == "a"
    assert clean("a<example>b.c") == "a"
    assert clean("3.5 apples") == "3"


def test_every_task_has_labels_in_lower_case():
    assert set(LABELS) == set(NAMES) == {f"qa{n}" for n in range(1, 21)}
    assert all(label == label.lower() for labels in LABELS.values() for label in labels)


@pytest.mark.parametrize(
    ("reply", "said"),
    [("garden", ""), (" ", "nothing"), ("in town", "names no answer"),
     ("kitchen or garden", "names garden, kitchen")],
)  # fmt: skip
def test_what_a_wrong_reply_names_is_said(reply, said):
    assert describe("qa1", "garden", reply, WHERE) == said
