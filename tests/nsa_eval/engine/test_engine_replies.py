"""Replies equal lm-eval's own, and don't depend on what shares a batch."""

import random
import re

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from nsa_eval.config import EngineSpec
from nsa_eval.engine import Answerer, Engine, Naming, _batching
from nsa_eval.errors import UserError

VARIANTS = {
    "auto": {},
    "one row at a time": {"batch_size": 1},
    "four rows": {"batch_size": 4},
    "nothing shared": {"share_prefixes": False},
    "pieces of 9 tokens": {"prefill_chunk": 9},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_replies_equal_lm_evals(any_model, tokenizer, toys, variant):
    requests = toys.reply_requests()
    expected = HFLM(pretrained=any_model, tokenizer=toys.make_tokenizer()).generate_until(
        requests, disable_tqdm=True
    )
    assert Engine(any_model, tokenizer, **VARIANTS[variant]).generate_until(requests) == expected
    assert len(set(expected)) > 4  # the prompts do lead somewhere else


@pytest.mark.parametrize("settings", [{}, {"batch_size": 1}, {"share_prefixes": False}])
def test_sampled_replies_depend_on_their_request_only(llama, tokenizer, toys, settings):
    requests = toys.reply_requests(do_sample=True, temperature=0.8, top_p=0.9, top_k=40)
    first = Engine(llama, tokenizer).generate_until(requests)
    shuffled = random.Random(3).sample(range(len(requests)), len(requests))
    mixed = Engine(llama, tokenizer, **settings).generate_until([requests[i] for i in shuffled])
    assert [mixed[shuffled.index(i)] for i in range(len(requests))] == first
    greedy = Engine(llama, tokenizer).generate_until(toys.reply_requests())
    assert first != greedy


def test_repeats_of_a_request_are_drawn_anew(llama, tokenizer, toys):
    request = toys.reply_requests(do_sample=True, temperature=1.0)[2]
    replies = Engine(llama, tokenizer).generate_until([request] * 4)
    assert len(set(replies)) > 1
    assert Engine(llama, tokenizer).generate_until([request] * 4) == replies


def test_top_k_of_one_is_greedy(llama, tokenizer, toys):
    drawn = Engine(llama, tokenizer).generate_until(
        toys.reply_requests(do_sample=True, temperature=2.0, top_k=1)
    )
    assert drawn == Engine(llama, tokenizer).generate_until(toys.reply_requests())


def test_stop_string_across_tokens_ends_the_reply(llama, tokenizer, toys):
    """A stop string needn't be a token, or begin where one begins."""
    [plain] = Engine(llama, tokenizer).generate_until(toys.reply_requests(max_gen_toks=30)[3:4])
    stop = plain[8:12]
    requests = toys.reply_requests(max_gen_toks=30, until=[stop])[3:4]
    seen = []
    engine = Engine(llama, tokenizer)
    steps = engine._answerer.loaded.reader().step
    engine._answerer.loaded.reader().step = lambda tokens, rows: seen.append(1) or steps(tokens, rows)
    assert engine.generate_until(requests) == [plain.split(stop)[0]]
    assert len(seen) < 29  # and nothing is generated after it


def test_budget_counts_inside_the_limit(llama, tokenizer, toys):
    request = toys.reply_requests(max_gen_toks=40)[4]
    size = len(tokenizer.encode(request.args[0]))
    assert Engine(llama, tokenizer, max_length=size + 40).generate_until([request])
    with pytest.raises(
        UserError, match=rf"task toy, document 4: the prompt has {size} tokens.*40 new tokens"
    ):
        Engine(llama, tokenizer, max_length=size + 39).generate_until([request])
    with pytest.raises(UserError, match="leave no room"):
        Engine(llama, tokenizer, max_length=40).generate_until([request])


def test_end_of_text_ends_a_row_and_the_others_go_on(tokenizer, toys):
    """A model that ends at once for one prompt gives an empty reply there, and the others as if alone."""
    model = toys.make_model("llama")
    requests = toys.reply_requests()
    alone = [Engine(model, tokenizer).generate_until([request])[0] for request in requests]
    prompt = torch.tensor([tokenizer.encode(requests[2].args[0])])
    model.generation_config.eos_token_id = [1, int(model(prompt).logits[0, -1].argmax())]
    replies = Engine(model, tokenizer, batch_size=9).generate_until(requests)
    assert len(replies[2]) < len(alone[2]) / 2
    assert any(reply == other for reply, other in zip(replies, alone, strict=True))
    assert all(other.startswith(reply) for reply, other in zip(replies, alone, strict=True))


def test_unknown_setting_is_refused_by_name(llama, tokenizer, toys):
    with pytest.raises(UserError, match=r"penalty_alpha=0\.6 isn't supported"):
        Engine(llama, tokenizer).generate_until(toys.reply_requests(penalty_alpha=0.6))
    with pytest.raises(UserError, match="temperature above 0"):
        Engine(llama, tokenizer).generate_until(toys.reply_requests(do_sample=True, temperature=0.0))


def test_batch_too_large_for_the_device_is_halved(llama, tokenizer, toys, monkeypatch):
    """Running out of memory changes how requests are batched, and nothing else."""
    scores, replies = toys.choice_requests(), toys.reply_requests()
    expected = (
        Engine(llama, tokenizer).loglikelihood(scores),
        Engine(llama, tokenizer).generate_until(replies),
    )
    engine = Engine(llama, tokenizer)
    reader = engine._answerer.loaded.reader()
    forward = reader._forward
    refused = []

    def small_device(tokens, counts, *rest):
        if len(counts) > 2:
            refused.append(len(counts))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(tokens, counts, *rest)

    monkeypatch.setattr(reader, "_forward", small_device)
    found = engine.loglikelihood(scores)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected[0]], abs=1e-4)
    assert engine.generate_until(replies) == expected[1]
    assert len(refused) > 4


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors", "CUDA error: out of memory."),
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
        ("", "OutOfMemoryError."),
    ],
)
def test_too_little_memory_for_a_request_is_told_in_sentences(
    llama, tokenizer, toys, monkeypatch, said, told
):
    engine = Engine(llama, tokenizer)
    reader = engine._answerer.loaded.reader()
    monkeypatch.setattr(reader, "_forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError(said)))
    message = f"too little device memory for one request at a time: {told} Lower prefill_chunk (now 8192)"
    with pytest.raises(UserError, match=re.escape(message)):
        engine.generate_until(toys.reply_requests())


def test_prompts_read_in_several_batches_go_on_as_one(any_model, tokenizer, toys, monkeypatch):
    """Joining rows of unequal prompts gives the replies that each gives alone."""
    requests = toys.reply_requests()
    alone = [Engine(any_model, tokenizer).generate_until([request])[0] for request in requests]
    engine = Engine(any_model, tokenizer, share_prefixes=False)
    reader = engine._answerer.loaded.reader()
    widths = []
    step = reader.step
    monkeypatch.setattr(reader, "step", lambda tokens, rows: widths.append(len(tokens)) or step(tokens, rows))
    monkeypatch.setattr(_batching, "_CPU_TOKENS", 150)
    monkeypatch.setattr(_batching, "_SHORTEST_REPLY", 0.0)
    assert engine.generate_until(requests) == alone
    if reader.family.ragged:
        assert max(widths) == len(requests)


def test_drawn_replies_follow_the_runs_seed(llama, tokenizer, toys):
    settings = EngineSpec()
    answerer = Answerer(llama, tokenizer, max_length=None, settings=settings)
    requests = toys.reply_requests(do_sample=True, temperature=1.5)

    def replies(seed):
        engine = Engine.over(
            tokenizer,
            answerer.facts,
            lambda asked, missing, emit: answerer.answer(asked, missing=missing, emit=emit),
            settings=settings,
            naming=Naming(seed=seed),
        )
        return engine.generate_until(requests)

    assert replies(1) == replies(1)
    assert replies(1) != replies(2)
    assert Engine(llama, tokenizer).generate_until(requests) == replies(None)
