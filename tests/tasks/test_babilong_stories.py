"""bAbI's files: what is known when a question is asked."""

import pytest

from nsa_tasks import TaskDataError
from nsa_tasks.babilong.prompts import lm_eval, official, parse_official
from nsa_tasks.babilong.stories import NAMES, most_lines, read_questions

TEXT = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Where is John?\thallway\t2 4
1 Sandra travelled to the office.
2 Where is Sandra? \toffice\t1
"""


def test_every_question_has_the_statements_before_it_and_no_question():
    first, second, third = read_questions(TEXT, "f.txt")
    assert first.facts == ("Mary moved to the bathroom.", "John went to the hallway.")
    assert second.facts == (*first.facts, "Daniel went back to the hallway.")
    assert third.facts == ("Sandra travelled to the office.",)
    assert [(q.text, q.target) for q in (first, second)] == [
        ("Where is Mary?", "bathroom"), ("Where is John?", "hallway"),
    ]  # fmt: skip
    assert (second.supports, second.story, second.line) == (
        (1, 2),
        0,
        5,
    )  # line 4 is fact 2: 3 was a question
    assert (third.story, third.line) == (1, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 Mary moved.\n2 Where is Mary?", "f.txt: no question"),
        ("", "f.txt: no question"),
        ("1 Mary moved.\nWhere is Mary?\tgarden\t1", "f.txt, line 2: expected a number and a statement"),
        ("2 Mary moved.", "f.txt, line 1: expected a story to begin with 1, got 2"),
        ("1 Mary moved.\n2 Where is Mary?\tgarden\t7", "f.txt, line 2: expected the numbers of statements"),
        ("1 Mary moved.\n2 Where is Mary?\tgarden\tx", "f.txt, line 2: expected the numbers of statements"),
    ],
)
def test_what_is_no_babi_file_is_named_by_line(text, message):
    with pytest.raises(TaskDataError, match=message):
        read_questions(text, "f.txt")


def test_a_line_for_eight_tokens():
    assert most_lines(700) == 87
    assert most_lines(-300) is None


OFFICIAL = """
TASK = '{instruction}\\n\\n{examples}\\n\\n{post_prompt}'
USER = '<c>\\n{context}\\n</c>\\n\\nQ: {question}'
DEFAULT_TEMPLATE = f'{TASK}\\n\\n{USER}'
OTHER = print
def f(): return run()
DEFAULT_PROMPTS = {'qa1': {'instruction': 'Read ' 'this.', 'examples': 'E {1}', 'post_prompt': 'One word.'}}
"""


def test_the_official_file_is_read_and_not_run():
    text = OFFICIAL.replace("OTHER = print\n", "")
    wording = parse_official(text, "qa1", "prompts.py")
    assert wording.prompt(" facts {2}\n", "Where?") == (
        "Read this.\n\nE {1}\n\nOne word.\n\n<c>\nfacts {2}\n</c>\n\nQ: Where?"
    )


@pytest.mark.parametrize(
    "text",
    [
        OFFICIAL,  # a name that is no literal
        "DEFAULT_TEMPLATE = 'x'",
        "DEFAULT_TEMPLATE = f'{open(1)}'",
        "DEFAULT_PROMPTS = {'qa1': __import__('os').getcwd()}",
        "x = (",
    ],
)
def test_what_is_no_plain_text_in_it_is_refused(text):
    with pytest.raises(TaskDataError, match=r"prompts.py: the prompt of qa1 can't be read"):
        parse_official(text, "qa1", "prompts.py")


def test_a_missing_official_file_says_where_it_is_had(tmp_path):
    with pytest.raises(
        TaskDataError, match=r"babilong/prompts.py. Copy babilong/prompts.py of https://github"
    ):
        official("qa1", str(tmp_path))
    (tmp_path / "babilong").mkdir()
    (tmp_path / "babilong/prompts.py").write_text(OFFICIAL)
    with pytest.raises(TaskDataError, match="another file than the one that was checked"):
        official("qa1", str(tmp_path))


@pytest.mark.parametrize("qa", ["qa1", "qa7", "qa19"])
def test_lm_evals_wording_is_the_text_that_lm_eval_sends(qa):
    import datasets
    from lm_eval.api.task import ConfigurableTask

    from nsa_tasks.babilong.prompts import _LM_EVAL
    from nsa_tasks.upstream import lm_eval_yaml

    own = lm_eval_yaml(f"babilong/babilong_{qa}.yaml", sha256=_LM_EVAL[qa])
    own.pop("include")
    doc = {"input": " Facts. ", "question": "Where is it?", "target": "garden"}
    rows = datasets.Dataset.from_list([doc])
    common = {"output_type": "generate_until", "doc_to_target": "{{target}}", "num_fewshot": 2}
    config = {**common, **own, "custom_dataset": lambda **_: {qa: rows}, "process_results": len}
    task = ConfigurableTask(config=config)
    assert lm_eval(qa).prompt(doc["input"], doc["question"]) == task.fewshot_context(doc, num_fewshot=2)


def test_every_task_of_lm_eval_is_the_one_that_was_checked():
    assert all(lm_eval(qa).prompt("x", "y").endswith("x\ny") for qa in NAMES)
