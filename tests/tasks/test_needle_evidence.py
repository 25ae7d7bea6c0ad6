"""Where a needle prompt says the answer: the value inside the needle that is asked for, and its tokens."""

import pytest

from nsa_tasks import families, family_of, resolve
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.needle import build
from nsa_tasks.spans import answer_tokens, token_spans

CASES = [
    ("needle_single", {}, 1),
    ("needle_single", {"needle": "sentence"}, 1),
    ("needle_single", {"needle": "uuid", "haystack": "noise"}, 1),
    ("needle_single_nll", {}, 1),
    ("needle_multikey", {"num_keys": 3, "haystack": "needles"}, 1),
    ("needle_multivalue", {"num_values": 3}, 3),
    ("needle_multiquery", {"num_queries": 2}, 2),
]


def request_of(task, tokenizer, params):
    tokens = RequestTokens.load(tokenizer)
    given = {"lengths": [700], "depths": [40], "samples": 1, **params}
    [doc] = build.documents(resolve(task, given), tokens)
    return doc, tokens.render(doc["input"], doc["gen_prefix"]), tokens.tokenizer


@pytest.mark.parametrize(("task", "params", "count"), CASES)
def test_evidence_is_each_answer_where_its_own_needle_says_it(task, params, count, bpe_tokenizer):
    doc, text, tokenizer = request_of(task, bpe_tokenizer, params)
    places = family_of(task).evidence(doc, text)
    assert [text[start:end] for start, end in places] == doc["outputs"]
    assert len(places) == count
    ids, spans = token_spans(tokenizer, text, places)
    assert len(ids) == doc["prompt_tokens"]
    for answer, span, (first, last) in zip(doc["outputs"], spans, doc["needle_spans"], strict=False):
        assert answer in tokenizer.decode(ids[span.start : span.stop])
        assert first <= span.start < span.stop <= last
        assert answer not in tokenizer.decode(ids[span.start + 1 : span.stop])


def test_tokenizers_without_offsets_find_the_same_text(slow_tokenizer):
    doc, text, tokenizer = request_of("needle_single", slow_tokenizer, {})
    ids, [span] = token_spans(tokenizer, text, family_of("needle_single").evidence(doc, text))
    assert tokenizer.decode(ids[span.start : span.stop]).strip() == doc["answer"]


@pytest.mark.parametrize(("task", "params", "count"), CASES)
def test_a_right_reply_is_copied_token_by_token_from_where_the_prompt_says_it(
    task, params, count, bpe_tokenizer
):
    doc, text, tokenizer = request_of(task, bpe_tokenizer, params)
    ids, found = answer_tokens(tokenizer, text, family_of(task).evidence(doc, text))
    assert len(found) == count
    for answer, of in zip(doc["outputs"], found, strict=True):
        assert ids + list(of.follow) == tokenizer(f"{text} {answer}")["input_ids"]
        copied = "".join(tokenizer.decode(ids[one.start : one.stop]) for one in of.sources)
        assert answer in copied
        assert of.sources[0].start in (0, of.whole.start)  # white space of its own, or the first digit
        assert of.sources[-1].stop == of.whole.stop


def test_where_no_tokens_can_be_told_the_whole_answer_is_the_source(slow_tokenizer):
    doc, text, tokenizer = request_of("needle_single", slow_tokenizer, {})
    _, [found] = answer_tokens(tokenizer, text, family_of("needle_single").evidence(doc, text))
    assert (found.follow, found.sources) == ((), (found.whole,))


def test_a_prompt_that_lost_its_needle_has_no_evidence(bpe_tokenizer):
    doc, text, _ = request_of("needle_single", bpe_tokenizer, {})
    assert family_of("needle_single").evidence(doc, text.replace(doc["needle"], "")) == ()


def test_other_families_have_none_by_themselves():
    for family in families().values():
        if family.name != "needle":
            assert family.evidence({"id": "x", "outputs": ["a"]}, "a prompt with a") == ()
