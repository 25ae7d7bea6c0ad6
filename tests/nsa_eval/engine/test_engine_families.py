"""The engine obeys what a model's family declares: rows that mustn't meet don't, and restrictions hold."""

import pytest
import torch
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from nsa_eval.engine import Engine
from nsa_eval.engine._reader import Reader
from nsa_models import ModelLoadError
from nsa_models.families import Restrictions

_SHAPE = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
SETTINGS = [
    {},
    {"batch_size": 1},
    {"batch_size": 8},
    {"prefill_chunk": 16},
    {"batch_size": 8, "share_prefixes": False},
]


def longrope(border):
    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": border,
        "short_factor": [1.0] * 4,
        "long_factor": [8.0, 12.0, 18.0, 28.0],
    }
    return LlamaForCausalLM(LlamaConfig(**_SHAPE, rope_parameters=rope)).eval()


def ids_of(seed, tokens):
    return torch.randint(2, 384, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].float()


def plain_score(model, context, tail):
    found = torch.log_softmax(plain(model, (context + tail)[:-1])[-len(tail) :], -1)
    return float(found[torch.arange(len(tail)), torch.tensor(tail)].sum())


def plain_reply(model, tokenizer, ids, budget):
    new = []
    while len(new) < budget and (not new or new[-1] != tokenizer.eos_token_id):
        new.append(int(plain(model, ids + new)[-1].argmax()))
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("border", [64, 128])
def test_scores_of_32_and_102_tokens_are_those_of_each_alone(tokenizer, border):
    """Frequencies go by the longest row of a forward: one long row changed every short one by nats."""
    model = longrope(border)
    head = ids_of(9, 66)
    lengths = (32, 102, 32, 102)
    pairs = [(ids_of(seed, length - 4), ids_of(50 + seed, 4)) for seed, length in enumerate(lengths)]
    pairs += [(head + ids_of(seed, 30), ids_of(70 + seed, 3)) for seed in range(3)]  # share beyond the border
    pairs += [(head[:40] + ids_of(seed, 8), ids_of(80 + seed, 2)) for seed in range(2)]  # and before it
    pairs += [(ids_of(90, border - 1), ids_of(91, 1)), (ids_of(92, border - 1), ids_of(93, 3))]
    expected = [plain_score(model, *pair) for pair in pairs]
    for settings in SETTINGS:
        asked = [(("", ""), context, tail) for context, tail in pairs]
        found = Engine(model, tokenizer, max_length=512, **settings)._loglikelihood_tokens(asked)
        assert [value for value, _ in found] == pytest.approx(expected, abs=1e-3), settings


def test_a_prefix_is_not_shared_across_the_border(tokenizer):
    """The same beginning has other keys in a row that ends behind the border; the scores must differ too."""
    model = longrope(64)
    head = ids_of(1, 60)
    short, long = (head, ids_of(2, 3)), (head + ids_of(3, 30), ids_of(4, 3))
    shared = Engine(model, tokenizer)._loglikelihood_tokens([(("", ""), *pair) for pair in (short, long) * 3])
    for (value, _), pair in zip(shared, (short, long) * 3, strict=True):
        assert value == pytest.approx(plain_score(model, *pair), abs=1e-3)


def test_prompts_behind_the_border_share_nothing_that_ends_before_it(tokenizer, toys):
    """Some 75 tokens in common are worth sharing, but read alone they'd have the keys of a short row."""
    model = longrope(100)
    head = toys.make_text(5, 75)
    prompts = [f"{head} {toys.make_text(20 + seed, 45)}" for seed in range(3)]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    common = next(i for i, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1)
    assert 64 <= common < 100 < min(len(row) for row in ids) <= 2 * common
    given = {"until": [], "max_gen_toks": 6, "do_sample": False}
    requests = [toys.request_of("generate_until", (prompt, dict(given))) for prompt in prompts]
    expected = [plain_reply(model, tokenizer, row, 6) for row in ids]
    assert Engine(model, tokenizer).generate_until(requests) == expected


def test_a_reply_that_crosses_the_border_is_read_again_once(tokenizer, toys, monkeypatch):
    model = longrope(64)
    whole = toys.reply_requests(max_gen_toks=30)[5]
    crossing = tokenizer.encode(whole.args[0])[:50]
    text = tokenizer.decode(crossing[1:])
    assert tokenizer.encode(text) == crossing
    request = toys.request_of("generate_until", (text, whole.args[1]))
    engine = Engine(model, tokenizer)
    reader = engine._answerer.loaded.reader()
    read = []
    forward = reader._forward
    monkeypatch.setattr(
        reader, "_forward", lambda tokens, *rest: read.append(tokens.shape[1]) or forward(tokens, *rest)
    )
    assert engine.generate_until([request]) == [plain_reply(model, tokenizer, crossing, 30)]
    assert read == [50, 65]


def test_six_replies_of_local_windows_at_batch_8_are_those_of_each_alone(tokenizer, toys):
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=384,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = GPTNeoForCausalLM(config).eval()
    requests = toys.reply_requests()[:6]
    expected = [plain_reply(model, tokenizer, tokenizer.encode(one.args[0]), 12) for one in requests]
    assert Engine(model, tokenizer, batch_size=8).generate_until(requests) == expected
    assert len(set(expected)) == 6


def test_decoded_steps_get_their_positions(tokenizer, toys):
    """Bamba counts each cached step from 0 when it is told no position."""
    torch.manual_seed(0)
    mamba = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    model = BambaForCausalLM(BambaConfig(**_SHAPE, **mamba, attn_layer_indices=[1])).eval()
    requests = toys.reply_requests()[:6]
    engine = Engine(model, tokenizer, batch_size=8)
    seen = []
    handle = model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given.get("position_ids")), with_kwargs=True
    )
    expected = [plain_reply(model, tokenizer, tokenizer.encode(one.args[0]), 12) for one in requests]
    engine._answerer.loaded.reader()
    seen.clear()
    assert engine.generate_until(requests) == expected
    handle.remove()
    steps = [given for given in seen if given is not None and given.shape[1] == 1]
    assert len(steps) >= 11
    assert all(int(step.min()) > 0 for step in steps)


def test_a_model_that_is_not_causal_stops_before_its_first_request(tokenizer, toys):
    model = BertLMHeadModel(BertConfig(**{**_SHAPE, "pad_token_id": 0}, is_decoder=False)).eval()
    request = toys.request_of("loglikelihood", ("a", " b"))
    engine = Engine(model, tokenizer, max_length=512)
    with pytest.raises(ModelLoadError, match="is not a causal language model"):
        engine.loglikelihood([request])


def test_replies_without_a_cache_say_so_even_from_the_store(tokenizer, toys, tmp_path):
    from nsa_eval.store import ResponseStore

    torch.manual_seed(0)
    config = RwkvConfig(**{**_SHAPE, "attention_hidden_size": 32, "context_length": 512})
    model = RwkvForCausalLM(config).eval()
    requests = toys.reply_requests()[:3]
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        first = Engine(model, tokenizer, max_length=512, store=store)
        replies = first.generate_until(requests)
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        again = Engine(model, tokenizer, max_length=512, store=store)
        assert again.generate_until(requests) == replies
    assert again._answerer.loaded._reader is None  # nothing was run
    assert again.audit == first.audit
    assert [(event.kind, event.task) for event in first.audit] == [("uncached", "")]
    assert "whole row again for every token" in first.audit[0].detail
    scored = Engine(model, tokenizer, max_length=512)
    scored.loglikelihood([toys.request_of("loglikelihood", ("the", " fox"))])
    assert scored.audit == []  # a log-likelihood needs no cache


def restricted(model, tokenizer, restrictions, widths):
    engine = Engine(model, tokenizer, prefill_chunk=16)
    engine._answerer.loaded.reader()
    engine._answerer.loaded._reader = reader = Reader(model, prefill_chunk=16, restrictions=restrictions)
    forward, step = reader._forward, reader.step
    reader._forward = lambda tokens, *rest: widths.append(tuple(tokens.shape)) or forward(tokens, *rest)
    reader.step = lambda tokens, rows: widths.append((len(tokens), 1)) or step(tokens, rows)
    return engine


def test_a_prompt_that_may_not_be_read_in_pieces_is_read_in_one(llama, tokenizer, toys):
    """One token at a time still goes on from the cache."""
    requests = toys.reply_requests()
    expected = Engine(llama, tokenizer).generate_until(requests)
    widths = []
    engine = restricted(llama, tokenizer, Restrictions(continuable=False), widths)
    assert engine.generate_until(requests) == expected
    lengths = {len(tokenizer.encode(one.args[0])) for one in requests}
    wide = [width for _, width in widths if width > 1]
    assert set(wide) <= lengths  # none is a piece
    assert max(lengths) in wide
    assert sum(width == 1 for _, width in widths) >= 11
    scores = toys.choice_requests()
    whole = [value for value, _ in Engine(llama, tokenizer).loglikelihood(scores)]
    assert [value for value, _ in engine.loglikelihood(scores)] == pytest.approx(whole, abs=1e-4)


def test_a_prefix_that_may_not_be_copied_is_read_by_each(llama, tokenizer, toys):
    requests = toys.choice_requests()
    expected = [value for value, _ in Engine(llama, tokenizer).loglikelihood(requests)]
    cells = {}
    for shared in (True, False):
        widths = []
        engine = restricted(llama, tokenizer, Restrictions(shared=shared), widths)
        found = [value for value, _ in engine.loglikelihood(requests)]
        assert found == pytest.approx(expected, abs=1e-4)
        assert max(width for _, width in widths) <= 16  # in pieces all the same
        cells[shared] = sum(rows * width for rows, width in widths)
    assert cells[False] > 1.5 * cells[True]


def test_graphs_that_are_forbidden_are_not_made(tokenizer, toys, monkeypatch):
    from nsa_models.families import ours

    monkeypatch.setattr(ours, "STEADY_DEVICES", ("cuda", "cpu"))
    model = toys.make_model("nsa")
    made = []
    monkeypatch.setattr(ours, "_Slots", lambda *args, **given: made.append(given["graphs"]) or 1 / 0)
    requests = toys.reply_requests(max_gen_toks=24)
    with pytest.raises(ZeroDivisionError):
        Engine(model, tokenizer).generate_until(requests)
    engine = Engine(model, tokenizer)
    engine._answerer.loaded._reader = Reader(
        model, prefill_chunk=8192, restrictions=Restrictions(graphs=False)
    )
    with pytest.raises(ZeroDivisionError):
        engine.generate_until(requests)
    assert made == [True, False]
