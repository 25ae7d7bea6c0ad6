"""Token ids as lm-eval's, cuts by a named policy, and a record of each."""

import pytest
from lm_eval.models.huggingface import HFLM
from transformers import BloomConfig, BloomForCausalLM

from nsa_eval.engine import Engine
from nsa_eval.engine._prompts import cut_tokens
from nsa_eval.errors import UserError


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("the quick", " brown fox"),
        ("the quick ", "brown fox"),
        ("the quick\n", "brown"),
        ("<s>the quick", " brown"),
        ("Füchse 🦊", " über"),
    ],
)
def test_pairs_are_cut_into_tokens_as_lm_eval_does(llama, toys, add_bos_token, context, continuation):
    hf = HFLM(pretrained=llama, tokenizer=toys.make_tokenizer(), add_bos_token=add_bos_token)
    engine = Engine(llama, toys.make_tokenizer(), add_bos_token=add_bos_token)
    prompt = engine.prompts.pair(context, continuation, origin=None) if "<s>" not in context else None
    if prompt is None:
        request = toys.request_of("loglikelihood", (context, continuation))
        engine.loglikelihood([request])
        assert engine._encode_pair(context, continuation) == hf._encode_pair(context, continuation)
        return
    assert (prompt.context, prompt.continuation) == hf._encode_pair(context, continuation)


def test_empty_context_starts_from_bos(llama, tokenizer, toys):
    origin = None
    engine = Engine(llama, tokenizer)
    prompt = engine.prompts.pair("", "the quick", origin)
    assert prompt.context == [tokenizer.bos_token_id]
    assert prompt.continuation == tokenizer.encode("the quick", add_special_tokens=False)


def test_long_prompt_stops_by_default_and_says_where(llama, tokenizer, toys):
    request = toys.request_of(
        "loglikelihood", (toys.make_text(1, 60), " gold"), doc_id=17, task="needle_single"
    )
    with pytest.raises(
        UserError, match=r"task needle_single, document 17: the prompt has \d+ tokens.*limit of 32"
    ):
        Engine(llama, tokenizer, max_length=32).loglikelihood([request])


def test_left_policy_equals_lm_evals(llama, tokenizer, toys):
    requests = [toys.request_of("loglikelihood", (toys.make_text(s, 20 + 9 * s), " gold")) for s in range(6)]
    hf = HFLM(pretrained=llama, tokenizer=toys.make_tokenizer(), max_length=40)
    engine = Engine(llama, tokenizer, max_length=40, truncation="left", parity="lm-eval")
    found = engine.loglikelihood(requests)
    for (value, _), (other, _) in zip(found, hf.loglikelihood(requests, disable_tqdm=True), strict=True):
        assert value == pytest.approx(other, abs=1e-4)
    assert {event.kind for event in engine.audit} == {"truncated"}
    replies = toys.reply_requests(max_gen_toks=8)
    assert engine.generate_until(replies) == hf.generate_until(replies, disable_tqdm=True)


def test_middle_policy_keeps_first_and_last_half(llama, tokenizer, toys):
    text = toys.make_text(5, 60)
    ids = tokenizer.encode(text)
    engine = Engine(llama, tokenizer, max_length=31, truncation="middle")
    prompt = engine.prompts.generation(text, budget=10, origin=_origin())
    assert prompt.context == ids[:10] + ids[-10:]  # int(21 / 2) from each end
    [event] = prompt.events
    assert (event.kind, event.before, event.after, event.task, event.doc_id) == (
        "truncated",
        len(ids),
        20,
        "t",
        2,
    )


def _origin():
    from nsa_eval.engine._prompts import Origin

    return Origin("t", 2)


@pytest.mark.parametrize(
    ("policy", "room", "kept"), [("left", 3, [7, 8, 9]), ("middle", 4, [0, 1, 8, 9]), ("middle", 1, [9])]
)
def test_cut(policy, room, kept):
    assert cut_tokens(list(range(10)), room, policy) == kept


def test_prompt_that_brings_its_own_bos_is_reported_and_not_doubled(llama, tokenizer, toys):
    engine = Engine(llama, tokenizer)
    engine.generate_until(
        [toys.request_of("generate_until", ("<s>the quick", {"max_gen_toks": 2}), doc_id=5)]
    )
    [event] = engine.audit
    assert (event.kind, event.doc_id) == ("double_bos", 5)
    prompt = engine.prompts.generation("<s>the quick", budget=2, origin=_origin())
    assert prompt.context == tokenizer.encode("the quick")
    assert event.before == len(prompt.context) + 1
    engine.loglikelihood([toys.request_of("loglikelihood", ("<s>the quick", " fox"), doc_id=6)])
    assert [event.doc_id for event in engine.audit] == [5, 6]
    plain = Engine(llama, tokenizer)
    plain.loglikelihood([toys.request_of("loglikelihood", ("the quick", " fox"))])
    assert plain.audit == []


def test_assumed_length_is_reported(tokenizer):
    model = BloomForCausalLM(BloomConfig(vocab_size=400, hidden_size=16, n_layer=1, n_head=2))
    engine = Engine(model, tokenizer)
    assert engine.max_length == 2048
    assert [(event.kind, event.after) for event in engine.audit] == [("default_max_length", 2048)]
    assert Engine(model, tokenizer, max_length=100).audit == []


def test_tokenizer_without_bos_and_eos_works_where_nothing_needs_them(llama, toys):
    engine = Engine(llama, toys.make_tokenizer(bos=False, eos=False))
    engine.loglikelihood([toys.request_of("loglikelihood", ("the quick", " fox"))])
    assert engine.generate_until(toys.reply_requests()[1:2])
    with pytest.raises(UserError, match="neither a BOS nor an EOS token"):
        engine.loglikelihood([toys.request_of("loglikelihood", ("", "fox"))])
    with pytest.raises(UserError, match="neither a BOS nor an EOS token"):
        engine.loglikelihood_rolling([toys.request_of("loglikelihood_rolling", ("fox",))])


def test_nothing_to_score_is_named(llama, tokenizer, toys):
    with pytest.raises(UserError, match="document 8: the continuation '' gives no tokens"):
        Engine(llama, tokenizer).loglikelihood([toys.request_of("loglikelihood", ("the", ""), doc_id=8)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"truncation": "right"}, "error, left, middle, got 'right'"),
        ({"prefill_chunk": 0}, "prefill_chunk"),
        ({"cuda_graphs": "on"}, "cuda_graphs"),
        ({"max_length": 1}, "max_length"),
    ],
)
def test_settings_are_checked(llama, tokenizer, settings, message):
    with pytest.raises(UserError, match=message):
        Engine(llama, tokenizer, **settings)


def test_chat_template_that_is_missing_is_one_message(llama, tokenizer):
    with pytest.raises(UserError, match="chat template"):
        Engine(llama, tokenizer).apply_chat_template([{"role": "user", "content": "hi"}])
