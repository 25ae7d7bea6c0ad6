"""Methods that remember rows, under the engine: what is remembered goes wherever a row of the cache goes."""

import pytest
import torch

from nsa_eval.config import EngineSpec
from nsa_eval.engine import Answerer, Engine, _steps
from nsa_models.methods import Memories, attach, make_method

METHODS = {
    "h2o:drop": make_method("h2o", 20, recent=8, first=2),
    "h2o:mask": make_method("h2o", 40, recent=8, variant="mask", heavy_ratio=0.2, recent_ratio=0.2),
    "infllm": make_method("infllm", 26, first=2, local=8, block=4, representatives=2, unit=8),
    "snapkv": make_method("snapkv", 16, window=4, kernel=3),
    "ada-snapkv": make_method("ada-snapkv", 16, window=4, kernel=3, local=4, first=1),
    "tidal-decode": make_method("tidal-decode", 8, choosing=[0], dense_layers=[]),
}
REMEMBERING = sorted(set(METHODS) - {"tidal-decode"})


@pytest.fixture(params=["llama", "full"])
def model(request, toys):
    return toys.make_model(request.param)


@pytest.fixture
def asked(toys):
    """Prompts of unequal length, some with a long beginning in common; replies that end one by one."""
    requests = toys.reply_requests(until=[])
    head = toys.make_text(200, 150)
    requests += [
        toys.request_of("generate_until", (f"{head} {toys.make_text(seed, 5)}", {"until": []}), doc_id=seed)
        for seed in range(20, 25)
    ]
    for number, request in enumerate(requests):
        request.args[1]["max_gen_toks"] = 4 + 3 * (number % 4)
    return requests


def engine_of(model, tokenizer, method, **settings):
    spec = EngineSpec(**settings)
    answerer = Answerer(model, tokenizer, max_length=None, settings=spec, method=method)
    engine = Engine.over(
        tokenizer,
        answerer.facts,
        lambda requests, missing, emit: answerer.answer(requests, missing=missing, emit=emit),
        settings=spec,
    )
    return engine, answerer


@torch.inference_mode()
def plain_loop(model, tokenizer, method, asked):
    """Greedy replies, one prompt after another, each read whole."""
    replies = []
    with attach(model, method) as attached:
        for request in asked:
            ids = torch.tensor([tokenizer.encode(request.args[0])])
            output = model(ids, use_cache=True)
            found = [int(output.logits[0, -1].argmax())]
            while len(found) < request.args[1]["max_gen_toks"] and found[-1] != tokenizer.eos_token_id:
                with attached.decoding():
                    output = model(
                        torch.tensor([found[-1:]]), past_key_values=output.past_key_values, use_cache=True
                    )
                found.append(int(output.logits[0, -1].argmax()))
            replies.append(tokenizer.decode(found, skip_special_tokens=True))
    return replies


@pytest.mark.parametrize("name", METHODS)
def test_replies_are_those_of_a_plain_loop(name, model, tokenizer, asked):
    expected = plain_loop(model, tokenizer, METHODS[name], asked)
    for settings in ({"batch_size": 1}, {"batch_size": 3}, {"batch_size": 8, "share_prefixes": False}, {}):
        engine, answerer = engine_of(model, tokenizer, METHODS[name], **settings)
        assert engine.generate_until(asked) == expected, settings
        answerer.close()


def test_rows_leave_join_and_share_prefixes_with_their_memory(model, tokenizer, asked, monkeypatch):
    """The engine does to memories all that it does to caches: otherwise a test here shows nothing."""
    seen = {"select": 0, "repeated": 0, "join": 0}
    select, join = Memories.select, Memories.join

    def selecting(self, indices):
        seen["select"] += 1
        seen["repeated"] += len(set(indices)) < len(indices)
        return select(self, indices)

    def joining(parts):
        seen["join"] += 1
        return join(parts)

    monkeypatch.setattr(Memories, "select", selecting)
    monkeypatch.setattr(Memories, "join", joining)
    engine, answerer = engine_of(model, tokenizer, METHODS["h2o:drop"], batch_size=3)
    engine.generate_until(asked)
    assert seen["select"]
    assert seen["repeated"]
    assert bool(seen["join"]) == answerer.loaded.reader().family.refills
    answerer.close()


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_row_without_its_memory_is_an_error(name, toys, tokenizer, asked, monkeypatch):
    """Rows in another order than their memories must not give a score."""
    monkeypatch.setattr(Memories, "select", lambda self, indices: Memories([row.copy() for row in self.rows]))
    engine, answerer = engine_of(
        toys.make_model("llama"), tokenizer, METHODS[name], batch_size=4, share_prefixes=False
    )
    with pytest.raises(ValueError, match=r"what the method remembers|came with the memory of"):
        engine.generate_until(asked)
    answerer.close()


@pytest.mark.parametrize("name", METHODS)
def test_replies_that_ran_out_of_memory_begin_anew(name, model, tokenizer, asked, monkeypatch):
    """What a step leaves behind isn't what a prompt does: nothing that a reply has is read as its prompt."""
    expected = plain_loop(model, tokenizer, METHODS[name], asked)
    steps = []
    step = _steps.RowSlots.step

    def failing(self):
        steps.append(1)
        if len(steps) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self)

    monkeypatch.setattr(_steps.RowSlots, "step", failing)
    engine, answerer = engine_of(model, tokenizer, METHODS[name], batch_size=8)
    assert engine.generate_until(asked) == expected
    assert len(steps) > 4
    answerer.close()


@pytest.mark.parametrize("name", METHODS)
def test_what_steps_read_is_what_is_stated_of_prompt_and_reply(name, toys, tokenizer, asked):
    model = toys.make_model("llama")
    spec = EngineSpec(batch_size=1)
    answerer = Answerer(model, tokenizer, max_length=None, settings=spec, method=METHODS[name])
    costs = []

    def answer(requests, missing, emit):
        def kept(responses):
            costs.extend(response.cost for response in responses.values())
            emit(responses)

        answerer.answer(requests, missing=missing, emit=kept)

    engine = Engine.over(tokenizer, answerer.facts, answer, settings=spec)
    engine.generate_until(asked)
    answerer.close()
    heads = model.config.num_attention_heads * model.config.num_hidden_layers
    assert len(costs) == len(asked)
    for cost in costs:
        stated, counted = cost.decode_stated, cost.decode_counted
        assert counted.dense == heads * stated.dense
        # What is stated is a mean over layers, rounded: half a token of TidalDecode's two, over all heads.
        assert abs(counted.read - heads * stated.read) <= (heads / 2 if name == "tidal-decode" else 0)
    assert sum(cost.decode_counted.read for cost in costs) < sum(cost.decode_counted.dense for cost in costs)
