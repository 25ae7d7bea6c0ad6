"""BOS and EOS of the tokenizer: right by default and said; lm-eval's own way by name."""

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from nsa_eval.engine import Engine
from nsa_eval.engine._prompts import added_tokens

TOKENIZERS = {
    "bos": {},
    "bos and eos": {"appends_eos": True},
    "eos alone": {"bos": False, "appends_eos": True},
    "none": {"bos": False},
}


def by_hand(model, context, tail):
    """Nats of `tail` after `context`, from one plain forward."""
    ids = torch.tensor([context + tail])
    with torch.no_grad():
        nats = model(ids, use_cache=False).logits.float().log_softmax(-1)[0]
    return sum(float(nats[len(context) - 1 + i, token]) for i, token in enumerate(tail))


def plain(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def rolling(engine, toys, text):
    return engine.loglikelihood_rolling([toys.request_of("loglikelihood_rolling", (text,), doc_id=3)])[0]


@pytest.mark.parametrize(
    ("options", "added"),
    [({}, ([0], [])), ({"appends_eos": True}, ([0], [1])), ({"bos": False}, ([], []))],
)
def test_what_a_tokenizer_adds_is_found(toys, options, added):
    assert added_tokens(toys.make_tokenizer(**options)) == added


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_rolling_scores_the_text_and_no_token_of_the_tokenizers(llama, toys, kind):
    tokenizer = toys.make_tokenizer(**TOKENIZERS[kind])
    text = toys.make_text(4, 30)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    engine = Engine(llama, tokenizer)
    assert rolling(engine, toys, text) == pytest.approx(
        by_hand(llama, [start], plain(tokenizer, text)), abs=1e-3
    )
    kinds = {event.kind for event in engine.audit}
    assert kinds == ({"bos_unscored"} if "bos" in kind else set()) | (
        {"eos_left_out"} if "eos" in kind else set()
    )


def test_a_bos_in_the_text_itself_is_given_and_not_scored(llama, tokenizer, toys):
    engine = Engine(llama, tokenizer)
    text = toys.make_text(4, 30)
    assert rolling(engine, toys, "<s>" + text) == pytest.approx(rolling(engine, toys, text))
    assert [(event.kind, event.doc_id) for event in engine.audit] == [("bos_unscored", 3)]


def test_a_text_that_is_bos_alone_has_nothing_to_score(llama, tokenizer, toys):
    assert rolling(Engine(llama, tokenizer), toys, "") == 0.0


@pytest.mark.parametrize("kind", ["bos and eos", "eos alone"])
def test_an_appended_eos_ends_no_context_and_shifts_no_token(llama, toys, kind):
    tokenizer = toys.make_tokenizer(**TOKENIZERS[kind])
    context, tail = toys.make_text(1, 12), " " + toys.make_text(2, 4)
    starts = added_tokens(tokenizer)[0]
    engine = Engine(llama, tokenizer)
    prompt = engine.prompts.pair(context, tail, origin=None)
    assert prompt.context == starts + plain(tokenizer, context)
    assert prompt.continuation == plain(tokenizer, tail)
    [(value, _)] = engine.loglikelihood([toys.request_of("loglikelihood", (context, tail))])
    assert value == pytest.approx(by_hand(llama, prompt.context, prompt.continuation), abs=1e-4)
    assert engine.prompts.generation(context, budget=2, origin=None).context == prompt.context
    [event] = engine.audit
    assert event.kind == "eos_left_out"
    assert "</s>" in event.detail


def test_an_eos_that_the_text_brings_stays(llama, toys):
    tokenizer = toys.make_tokenizer(appends_eos=True)
    engine = Engine(llama, tokenizer)
    prompt = engine.prompts.generation("the fox</s>", budget=2, origin=None)
    assert prompt.context == [0, *plain(tokenizer, "the fox"), 1]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_left_cut_keeps_the_bos(llama, toys, kind):
    tokenizer = toys.make_tokenizer(**TOKENIZERS[kind])
    text = toys.make_text(5, 60)
    engine = Engine(llama, tokenizer, max_length=31, truncation="left")
    starts = added_tokens(tokenizer)[0]
    prompt = engine.prompts.generation(text, budget=10, origin=_origin())
    assert prompt.context == starts + plain(tokenizer, text)[-(21 - len(starts)) :]
    [event] = prompt.events
    assert ("token kept" in event.detail) == bool(starts)
    assert (event.before, event.after) == (len(starts) + len(plain(tokenizer, text)), 21)


def test_a_bos_that_the_text_brings_is_kept_too(llama, tokenizer, toys):
    """As every chat template's: the tokenizer adds none then."""
    engine = Engine(llama, tokenizer, max_length=31, truncation="left")
    prompt = engine.prompts.generation("<s>" + toys.make_text(5, 60), budget=10, origin=_origin())
    assert prompt.context[0] == tokenizer.bos_token_id
    assert len(prompt.context) == 21


def _origin():
    from nsa_eval.engine._prompts import Origin

    return Origin("t", 2)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_parity_gives_lm_evals_own_figures(llama, toys, kind):
    def made():
        return toys.make_tokenizer(**TOKENIZERS[kind])

    hf = HFLM(pretrained=llama, tokenizer=made(), max_length=40)
    same = Engine(llama, made(), max_length=40, truncation="left", parity="lm-eval")
    right = Engine(llama, made(), max_length=40, truncation="left")
    pairs = [
        toys.request_of("loglikelihood", (toys.make_text(s, 10 + 15 * s), " gold under")) for s in range(4)
    ]
    texts = [toys.request_of("loglikelihood_rolling", (toys.make_text(s, 30),)) for s in range(3)]
    scores = [
        [value for value, _ in lm.loglikelihood(pairs, disable_tqdm=True)]
        + lm.loglikelihood_rolling(texts, disable_tqdm=True)
        for lm in (hf, same, right)
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
    assert (scores[2] == pytest.approx(scores[0], abs=1e-3)) == (kind == "none")
    assert not {"bos_unscored", "eos_left_out"} & {event.kind for event in same.audit}
    replies = toys.reply_requests(max_gen_toks=8)
    assert same.generate_until(replies) == hf.generate_until(replies, disable_tqdm=True)
