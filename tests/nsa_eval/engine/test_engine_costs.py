"""What responses took stands beside them, and is never part of what they say."""

import pytest

from nsa_eval.engine import Engine
from nsa_eval.store import Cost, ResponseStore
from nsa_models.kv import kv_cost
from nsa_models.methods import attach, make_method


def responses(store):
    return list(store._responses.values())


@pytest.mark.parametrize("kind", ["llama", "nsa"])
def test_every_response_has_its_share_of_time_and_tokens(kind, toys, tokenizer, tmp_path):
    model = toys.make_model(kind)
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        engine = Engine(model, tokenizer, store=store)
        engine.loglikelihood(toys.choice_requests())
        scored = responses(store)
        assert all(r.cost.prefill_seconds > 0 == r.cost.decode_seconds for r in scored)
        assert all(
            (r.cost.prompt_tokens, r.cost.new_tokens) == (r.prompt_tokens, r.new_tokens) for r in scored
        )
        assert all(r.cost.kv_read is None for r in scored)
        engine.generate_until(toys.reply_requests())
        engine.loglikelihood_rolling([toys.request_of("loglikelihood_rolling", (toys.make_text(3, 50),))])
        replies = [r for r in responses(store) if isinstance(r.value, str)]
        for reply in replies:
            assert reply.cost.prefill_seconds > 0
            assert (reply.cost.decode_seconds > 0) == (reply.new_tokens > 1)
            steps = range(reply.prompt_tokens + 1, reply.prompt_tokens + reply.new_tokens)
            assert reply.cost.kv_read == round(sum(kv_cost(model, tokens).read for tokens in steps))
        [rolling] = [r for r in responses(store) if isinstance(r.value, float)]
        assert rolling.cost.prefill_seconds > 0
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        assert all(response.cost is not None for response in responses(store))


def test_times_of_a_batch_add_up_to_what_it_took(toys, tokenizer, tmp_path):
    import time

    model = toys.make_model("llama")
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        engine = Engine(model, tokenizer, store=store)
        engine._answerer.loaded.reader()
        began = time.perf_counter()
        engine.generate_until(toys.reply_requests())
        whole = time.perf_counter() - began
        total = sum((r.cost for r in responses(store)), Cost())
    assert 0.5 * whole < total.prefill_seconds + total.decode_seconds <= whole


def test_a_cost_changes_neither_equality_nor_what_is_dumped(toys, tokenizer, tmp_path):
    from nsa_eval.store import Response

    plain = Response(value="a", prompt_tokens=1, new_tokens=2)
    costly = plain.model_copy(update={"cost": Cost(decode_seconds=3.0)})
    assert plain == costly
    assert plain.model_dump() == costly.model_dump()


def test_reads_and_kept_tokens_by_kind_of_attention(toys):
    nsa = toys.make_model("nsa")  # l 8, d 4, l' 8, n 4, w 16
    assert kv_cost(nsa, 100).read == 24 + 32 + 16
    assert kv_cost(nsa, 100).kept == 300 + 24
    assert kv_cost(nsa, 6).read == 0 + 6 + 6
    llama, sliding = toys.make_model("llama"), toys.make_model("sliding")
    assert (kv_cost(llama, 100).read, kv_cost(llama, 100).kept) == (100, 100)
    assert kv_cost(sliding, 100).read == 24
    with attach(llama, make_method("quest", 32, page=16, reading="kernel", dense_layers=[0])):
        assert kv_cost(llama, 160).read == (160 + 32) / 2
        assert kv_cost(llama, 160).kept == 160
    assert kv_cost(llama, 160).read == 160


def test_what_is_done_once_stands_apart_and_is_told_once(toys, tokenizer, tmp_path, monkeypatch):
    """A probe of a second, and a compiler in the middle of the work, are in no pace."""
    import time

    from nsa_eval.engine import _loaded, _reader
    from nsa_models.once import once

    real = _reader.Reader

    def slow(*args, **given):
        time.sleep(0.4)
        return real(*args, **given)

    monkeypatch.setattr(_loaded, "Reader", slow)
    step = real.step

    def compiling(self, *args):
        with once():
            time.sleep(0.2)
        monkeypatch.setattr(real, "step", step)
        return step(self, *args)

    monkeypatch.setattr(real, "step", compiling)
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        engine = Engine(toys.make_model("llama"), tokenizer, store=store)
        engine.generate_until(toys.reply_requests())
        engine.loglikelihood(toys.choice_requests())
        total = sum((r.cost for r in responses(store)), Cost())
    assert 0.6 <= total.warm_up_seconds < 1.2
    assert total.prefill_seconds + total.decode_seconds < 0.4


def test_bytes_are_read_as_tokens_are(toys, tokenizer, tmp_path):
    model = toys.make_model("nsa")
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        Engine(model, tokenizer, store=store).generate_until(toys.reply_requests())
        for reply in responses(store):
            steps = range(reply.prompt_tokens + 1, reply.prompt_tokens + reply.new_tokens)
            assert reply.cost.kv_read_bytes == round(sum(kv_cost(model, n).read_bytes for n in steps))
            last = reply.prompt_tokens + reply.new_tokens - 1
            assert reply.cost.kv_kept_bytes == round(kv_cost(model, last).kept_bytes)


def test_a_sheet_has_every_answer_by_task_and_by_length(toys, tokenizer):
    from nsa_eval.store import Conditions

    engine = Engine(toys.make_model("llama"), tokenizer)
    engine.generate_until(toys.reply_requests())
    engine.loglikelihood(toys.choice_requests())
    conditions = Conditions(
        device_name="x", device="cpu", dtype="float32", backend="sdpa", batch_size="auto", weights_bytes=1
    )
    sheet = engine.cost_sheet(conditions)
    [cost] = sheet.tasks.values()
    assert cost.responses == len(toys.reply_requests()) + len({r.arguments for r in toys.choice_requests()})
    assert sum(row.cost.responses for row in sheet.lengths) == cost.responses
    assert sum(row.cost.prefill_seconds for row in sheet.lengths) == pytest.approx(cost.prefill_seconds)
    assert all(row.up_to / 2 < row.tokens <= row.up_to for row in sheet.lengths)
    assert {row.kind for row in sheet.lengths} == {"reply", "scored"}


def test_a_run_that_went_on_elsewhere_is_of_both_devices(toys, tokenizer):
    from nsa_eval._devices import device_name
    from nsa_eval.store import Conditions, Response, Tally

    here = Conditions(
        device_name="B", device="cuda", dtype="float32", backend="sdpa", batch_size="auto", weights_bytes=1
    )
    tally = Tally()
    for device in ("B", "A", "B", ""):
        cost = Cost(prefill_seconds=1.0, prompt_tokens=5, new_tokens=1, device=device)
        tally.add("t", "loglikelihood", Response(value=0.0, prompt_tokens=5, new_tokens=1, cost=cost))
    assert tally.sheet(here).conditions.device_name == "A and B"
    engine = Engine(toys.make_model("llama"), tokenizer)
    engine.loglikelihood(toys.choice_requests())
    engine.generate_until(toys.reply_requests())
    assert engine.cost_sheet(here).conditions.device_name == device_name(engine.model.device)
