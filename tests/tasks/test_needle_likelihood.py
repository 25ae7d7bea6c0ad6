"""Needle answers by their log-likelihood: the documents of the tasks that ask, the answer's own tokens."""

import math

import pytest
from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from nsa_tasks import TaskParameterError, resolve, task_spec
from nsa_tasks._tokens import RequestTokens, tokenizer_template
from nsa_tasks.needle.likelihood import NOT_GREEDY, scores

GRID = {"lengths": [400, 600], "depths": 2, "samples": 2}


class Scorer(LM):
    """Gives every answer -3 nats; greedy for every second one."""

    tokenizer_name = "scorer"

    def __init__(self):
        super().__init__()
        self.asked = []

    def loglikelihood(self, requests, disable_tqdm=False):
        self.asked = [request.args for request in requests]
        return [(-3.0, number % 2 == 0) for number in range(len(requests))]

    def generate_until(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = generate_until

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        raise NotImplementedError


def load(task, tokenizer, **params):
    spec = task_spec(task, {**GRID, **params}, tokenizer=tokenizer)
    return TaskManager(include_defaults=False).load([spec])


@pytest.mark.parametrize("form", ["needle_single", "needle_multikey"])
def test_documents_are_those_of_the_task_that_asks(form, bpe_tokenizer):
    asking = load(form, bpe_tokenizer)["tasks"][form]
    scoring = load(f"{form}_nll", bpe_tokenizer)["tasks"][f"{form}_nll"]
    for one, other in zip(asking.eval_docs, scoring.eval_docs, strict=True):
        assert asking.doc_to_text(one) == scoring.doc_to_text(other)
        assert {key: other[key] for key in one} == one


@pytest.mark.parametrize("form", ["needle_single_nll", "needle_multikey_nll"])
@pytest.mark.parametrize("needle", ["number", "uuid", "word"])
def test_the_answer_is_scored_in_the_place_of_the_reply(form, needle, bpe_tokenizer, slow_tokenizer):
    for path in (bpe_tokenizer, slow_tokenizer):
        lengths = [1200] if path == slow_tokenizer else [600]
        loaded = load(form, path, needle=needle, lengths=lengths, samples=1)
        model = Scorer()
        results = evaluate(model, loaded, bootstrap_iters=0)
        tokenizer = AutoTokenizer.from_pretrained(path)
        for sample, (context, answer) in zip(results["samples"][form], model.asked, strict=True):
            doc = sample["doc"]
            assert answer == f" {doc['answer']}"
            assert context.endswith(doc["gen_prefix"])
            assert doc["answer"] in context
            plain = [tokenizer.encode(text, add_special_tokens=False) for text in (context, context + answer)]
            assert plain[1][: len(plain[0])] == plain[0]
            assert doc["answer_tokens"] == len(plain[1]) - len(plain[0]) <= doc["new_tokens"]
            assert sample["nll"] == pytest.approx(3.0 / doc["answer_tokens"])


def test_scores_are_the_mean_over_documents_and_a_miss_is_told(bpe_tokenizer):
    results = evaluate(Scorer(), load("needle_single_nll", bpe_tokenizer), bootstrap_iters=0)
    figures = results["results"]["needle_single_nll"]
    listed = results["samples"]["needle_single_nll"]
    assert figures["greedy,none"] == 0.5
    assert figures["nll,none"] == pytest.approx(
        math.fsum(3.0 / s["doc"]["answer_tokens"] for s in listed) / 8
    )
    assert [sample["doc"].get("reasons") for sample in listed] == [None, [NOT_GREEDY]] * 4
    assert results["higher_is_better"]["needle_single_nll"] == {"nll": False, "greedy": True}


def test_a_request_with_its_answer_fits_its_length(bpe_tokenizer):
    task = load("needle_single_nll", bpe_tokenizer)["tasks"]["needle_single_nll"]
    tokens = RequestTokens.load(bpe_tokenizer)
    task.build_all_requests()
    for request in task.instances:
        assert tokens.count("".join(request.args)) <= request.doc["length"]


def test_behind_a_chat_template_the_answer_goes_on_from_the_replys_start(bpe_tokenizer):
    spec = task_spec("needle_single_nll", GRID, tokenizer=bpe_tokenizer, apply_chat_template=True)
    task = TaskManager(include_defaults=False).load([spec])["tasks"]["needle_single_nll"]
    template = tokenizer_template(AutoTokenizer.from_pretrained(bpe_tokenizer))
    task.build_all_requests(apply_chat_template=True, chat_template=template)
    tokens = RequestTokens.load(bpe_tokenizer)
    for request in task.instances:
        context, answer = request.args
        assert context.startswith("<s><|user|>")
        assert context.rstrip().endswith(request.doc["gen_prefix"])
        whole, head = (tokens.ids(text) for text in (context + answer, context))
        assert len(whole) - len(head) == request.doc["answer_tokens"]
        assert len(whole) <= request.doc["length"]


def test_an_answer_that_has_no_room_is_refused(bpe_tokenizer):
    with pytest.raises(TaskParameterError, match=r"new_tokens = 2: the answer of .* takes \d+ tokens"):
        load("needle_single_nll", bpe_tokenizer, new_tokens=2)


def test_a_length_that_is_too_short_names_the_task_that_was_asked(bpe_tokenizer):
    message = "needle_single_nll: its documents are those of needle_single: length 50 is too short"
    with pytest.raises(TaskParameterError, match=message):
        load("needle_single_nll", bpe_tokenizer, lengths=[50])


def test_scores_by_hand():
    assert scores({"answer_tokens": 4}, [(-2.0, True)]) == {"nll": 0.5, "greedy": 1.0}
    assert scores({"answer_tokens": 8}, [(-2.0, False)]) == {"nll": 0.25, "greedy": 0.0}


def test_a_sentence_goes_with_the_single_form_alone():
    assert resolve("needle_single_nll", {"needle": "sentence"}).needle == "sentence"
    with pytest.raises(TaskParameterError, match="only needle_single hides a sentence"):
        resolve("needle_multikey_nll", {"needle": "sentence"})
