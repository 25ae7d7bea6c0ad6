"""Log-likelihoods equal lm-eval's own, whatever is batched, shared or cut into pieces."""

import random

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from nsa_eval.engine import Engine, NonFiniteLogitsError, _reader
from nsa_eval.engine._logits import Columns, Everything, Places

VARIANTS = {
    "auto": {},
    "one row at a time": {"batch_size": 1},
    "three rows": {"batch_size": 3},
    "nothing shared": {"share_prefixes": False},
    "nothing shared, one row": {"share_prefixes": False, "batch_size": 1},
    "pieces of 7 tokens": {"prefill_chunk": 7},
    "pieces, nothing shared": {"prefill_chunk": 16, "share_prefixes": False},
}


def assert_same_scores(found, expected):
    assert len(found) == len(expected)
    for number, ((value, greedy), (other, other_greedy)) in enumerate(zip(found, expected, strict=True)):
        assert value == pytest.approx(other, abs=1e-4), number
        assert greedy == other_greedy, number


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_equal_lm_evals(any_model, tokenizer, toys, variant):
    requests = toys.choice_requests()
    expected = HFLM(pretrained=any_model, tokenizer=toys.make_tokenizer()).loglikelihood(
        requests, disable_tqdm=True
    )
    engine = Engine(any_model, tokenizer, **VARIANTS[variant])
    assert_same_scores(engine.loglikelihood(requests), expected)
    assert len({round(value, 3) for value, _ in expected}) > len(expected) // 2  # the requests do differ


def test_some_continuation_is_greedy(llama, tokenizer, toys):
    """is_greedy isn't False for everything: the model's own reply, asked as a continuation, is greedy."""
    context = toys.make_text(3, 20)
    reply = HFLM(pretrained=llama, tokenizer=toys.make_tokenizer())
    ids = tokenizer.encode(context)
    new = llama.generate(torch.tensor([ids]), max_new_tokens=1, do_sample=False, pad_token_id=0)[0, -1:]
    request = [((context, "?"), ids, new.tolist())]
    assert Engine(llama, tokenizer)._loglikelihood_tokens(request)[0][1] is True
    assert reply._loglikelihood_tokens(request, disable_tqdm=True)[0][1] is True


def test_order_of_requests_changes_nothing(llama, tokenizer, toys):
    requests = toys.choice_requests()
    shuffled = random.Random(5).sample(requests, len(requests))
    straight = dict(zip(map(id, requests), Engine(llama, tokenizer).loglikelihood(requests), strict=True))
    mixed = dict(zip(map(id, shuffled), Engine(llama, tokenizer).loglikelihood(shuffled), strict=True))
    assert mixed == straight  # to the last bit: batches are the same


def test_rolling_equals_lm_evals(any_model, tokenizer, toys):
    texts = [toys.make_text(seed, words) for seed, words in ((1, 1), (2, 40), (3, 200))] + [""]
    requests = [toys.request_of("loglikelihood_rolling", (text,)) for text in texts]
    expected = HFLM(
        pretrained=any_model, tokenizer=toys.make_tokenizer(), max_length=48
    ).loglikelihood_rolling(requests, disable_tqdm=True)
    for settings in ({}, {"prefill_chunk": 5}, {"batch_size": 2}):
        engine = Engine(any_model, tokenizer, max_length=48, parity="lm-eval", **settings)
        found = engine.loglikelihood_rolling(requests)
        assert found == pytest.approx(expected, abs=2e-3)  # a sum of hundreds of terms


def test_shared_prefixes_are_read_once(llama, tokenizer, toys, monkeypatch):
    """The choices of a question cost its context once; sharing off, they cost it each time."""
    read = []
    forward = _reader.Reader._forward

    def counting(self, tokens, counts, *rest):
        read.append(sum(counts))
        return forward(self, tokens, counts, *rest)

    monkeypatch.setattr(_reader.Reader, "_forward", counting)
    document = toys.make_text(1, 60)
    asked = [
        (f"{document} {toys.make_text(question, 20)}", f" {toys.make_text(50 + choice, 4)}")
        for question in range(3)
        for choice in range(4)
    ]
    requests = [toys.request_of("loglikelihood", pair) for pair in asked]
    Engine(llama, tokenizer).loglikelihood(requests)
    shared = sum(read)
    read.clear()
    Engine(llama, tokenizer, share_prefixes=False).loglikelihood(requests)
    whole = sum(read)
    document_tokens = len(tokenizer.encode(document))
    assert whole > 12 * document_tokens
    assert shared < whole - 11 * (document_tokens - 8)


def test_logits_are_made_for_scored_places_only(llama, tokenizer, toys, monkeypatch):
    made = []
    hook = llama.lm_head.register_forward_hook(lambda module, given, out: made.append(out.shape[:-1].numel()))
    try:
        engine = Engine(llama, tokenizer, batch_size=4)
        engine._answerer.loaded.reader()
        made.clear()
        requests = [
            toys.request_of("loglikelihood", (toys.make_text(seed, 60 + seed), " gold under"))
            for seed in range(4)
        ]
        engine.loglikelihood(requests)
    finally:
        hook.remove()
    scored = sum(len(engine.prompts.pair(*request.args, origin=None).continuation) for request in requests)
    assert sum(made) == scored


@pytest.mark.parametrize("route", [Places, Columns, Everything])
def test_other_ways_to_logits_agree(llama, tokenizer, toys, route):
    """A model that takes whole columns only, or no logits_to_keep at all, gives the same scores."""
    requests = toys.choice_requests()
    expected = Engine(llama, tokenizer).loglikelihood(requests)
    engine = Engine(llama, tokenizer)
    reader = engine._answerer.loaded.reader()
    assert reader.route.name == "head"
    reader.route = route(llama.device)
    assert_same_scores(engine.loglikelihood(requests), expected)


def test_a_head_that_does_more_than_multiply_is_not_run_apart(tokenizer, toys):
    """A soft cap on the logits stands behind the head: the two run together then."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    requests = toys.choice_requests()[:8]
    for cap, route in ((5.0, "mask"), (None, "head")):
        config = Gemma2Config(**shape, **heads, final_logit_softcapping=cap, initializer_range=0.3)
        engine = Engine(Gemma2ForCausalLM(config).eval(), tokenizer)
        engine.loglikelihood(requests)
        assert engine._answerer.loaded.reader().route.name == route


def test_logits_over_the_budget_are_made_in_parts(llama, tokenizer, toys):
    text = toys.request_of("loglikelihood_rolling", (toys.make_text(1, 150),))
    whole = Engine(llama, tokenizer).loglikelihood_rolling([text])
    made = []
    hook = llama.lm_head.register_forward_hook(lambda module, given, out: made.append(out.shape[:-1].numel()))
    try:
        engine = Engine(llama, tokenizer)
        engine._answerer.loaded.reader().max_positions = 10
        made.clear()
        assert engine.loglikelihood_rolling([text]) == pytest.approx(whole, abs=1e-3)
    finally:
        hook.remove()
    assert max(made) <= 10


def test_broken_weights_stop_with_model_and_request(tokenizer, toys):
    model = toys.make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(NonFiniteLogitsError, match=r"LlamaForCausalLM.*task toy, document 4"):
        Engine(model, tokenizer).loglikelihood(
            [toys.request_of("loglikelihood", ("the quick", " brown"), doc_id=4)]
        )
    with pytest.raises(NonFiniteLogitsError, match="task toy, document 0"):
        Engine(model, tokenizer).generate_until(toys.reply_requests()[:1])
