"""Cells of attention beside responses: what a method states, and what was counted as it ran."""

import pytest

from nsa_eval.config import EngineSpec
from nsa_eval.engine import Answerer, Engine
from nsa_eval.store import Cells, Conditions, Cost, Response, ResponseStore, Tally
from nsa_models.methods import make_method

EXACT = make_method("exact-top", 24, first=4, local=8)
QUEST = make_method("quest", 16, page=4, dense_layers=[])
SINKS = make_method("streaming-llm", 20, first=4)
# What a query of a prompt reads under this depends on the prompt: it states no more than dense.
COVER = make_method("flexprefill", gamma=0.5, least=4, block=4)
# What a query of a prompt reads under these depends on where the prompt ends.
CHUNKS = make_method("dhsa-fixed", 24, chunk=2, block=8, first=4, local=8, tail=12)
FAR = make_method("infllm", 26, first=2, local=8, block=4, representatives=2, unit=8)
ONESHOT = make_method("h2o", 40, recent=8, variant="oneshot", heavy_ratio=0.2, recent_ratio=0.1)


def answered(model, tokenizer, method, **settings):
    """An engine over a model under a method, its answerer, and the costs of what it answers."""
    spec = EngineSpec(**settings)
    answerer = Answerer(model, tokenizer, max_length=None, settings=spec, method=method)
    costs = []

    def answer(requests, missing, emit):
        def kept(responses):
            costs.extend(response.cost for response in responses.values())
            emit(responses)

        answerer.answer(requests, missing=missing, emit=kept)

    return Engine.over(tokenizer, answerer.facts, answer, settings=spec), answerer, costs


def scaled(cells, model):
    """Cells over all layers and heads."""
    heads = model.config.num_attention_heads * model.config.num_hidden_layers
    return (cells.read * heads, cells.dense * heads)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("method", [EXACT, SINKS, CHUNKS, FAR], ids=lambda method: method.name)
def test_counts_are_what_a_method_states_where_nothing_is_shared(rows, method, toys, tokenizer):
    model = toys.make_model("llama")
    engine, answerer, found = answered(model, tokenizer, method, batch_size=rows, share_prefixes=False)
    engine.generate_until(toys.reply_requests())
    texts = [(toys.make_text(seed, 9 * seed), " the lazy dog") for seed in range(1, 5)]
    engine.loglikelihood(
        [toys.request_of("loglikelihood", text, doc_id=number) for number, text in enumerate(texts)]
    )
    answerer.close()
    total = sum(found, Cost())
    for stated, counted in (
        (total.prefill_stated, total.prefill_counted),
        (total.decode_stated, total.decode_counted),
    ):
        if stated is total.decode_stated and method.phase == "prefill":
            continue
        # A row that has ended may go along for a step; shares are rounded.
        assert (counted.read, counted.dense) == pytest.approx(scaled(stated, model), rel=0.02)
        assert 0 < counted.density < 1
        assert counted.heads == model.config.num_attention_heads * model.config.num_hidden_layers
    for cost in found if rows == 1 else ():
        counted = cost.prefill_counted
        assert (counted.read, counted.dense) == scaled(cost.prefill_stated, model)
        assert cost.prefill_stated.least == cost.prefill_stated.read


@pytest.mark.parametrize("method", [COVER, FAR], ids=lambda method: method.name)
def test_what_a_whole_prompt_read_does_not_depend_on_who_is_read_beside_it(method, toys, tokenizer):
    model, by_rows = toys.make_model("llama"), []
    for rows in (1, 8):
        engine, answerer, costs = answered(model, tokenizer, method, batch_size=rows)
        engine.generate_until(toys.reply_requests())
        texts = [(toys.make_text(seed, 9 * seed), " the lazy dog") for seed in range(1, 5)]
        engine.loglikelihood(
            [toys.request_of("loglikelihood", text, doc_id=number) for number, text in enumerate(texts)]
        )
        answerer.close()
        counted = [cost.prefill_counted for cost in costs]
        by_rows.append(sorted((one.dense, one.read) for one in counted))
    assert by_rows[0] == by_rows[1]
    assert len({round(read / dense, 6) for dense, read in by_rows[1]}) > 3  # a batch has no common density


def test_parts_of_a_prompt_are_stated_of_the_prompt_that_is_read(toys, tokenizer):
    model = toys.make_model("llama")
    engine, answerer, costs = answered(model, tokenizer, ONESHOT, batch_size=1)
    engine.generate_until(toys.reply_requests())
    answerer.close()
    heads = model.config.num_attention_heads * model.config.num_hidden_layers
    for cost in costs:
        stated, counted = cost.prefill_stated, cost.prefill_counted
        assert stated.least * heads <= counted.read <= stated.read * heads
    assert sum(costs, Cost()).prefill_stated.density < 0.9


def test_steps_state_what_is_left_of_vectors(toys, tokenizer):
    method = make_method("mustafar", 2, local=4)
    engine, answerer, costs = answered(toys.make_model("llama"), tokenizer, method, batch_size=1)
    engine.generate_until(toys.reply_requests())
    answerer.close()
    for cost in costs:
        steps = range(cost.prompt_tokens + 1, cost.prompt_tokens + cost.new_tokens)
        left = sum(tokens * method.vector_share(tokens, 8) for tokens in steps)
        assert cost.decode_stated.left == round(left)
        assert cost.decode_stated.part == pytest.approx(left / sum(steps), abs=1e-2)
        assert (cost.decode_stated.density, cost.prefill_stated.left) == (1, None)


def test_what_prompts_share_is_counted_once_and_stated_for_each(toys, tokenizer):
    totals = []
    for shared in (True, False):
        engine, answerer, costs = answered(toys.make_model("llama"), tokenizer, EXACT, share_prefixes=shared)
        engine.loglikelihood(toys.choice_requests())
        answerer.close()
        totals.append(sum(costs, Cost()))
    assert totals[0].prefill_counted.dense < totals[1].prefill_counted.dense
    assert totals[0].prefill_stated == totals[1].prefill_stated


def test_a_decode_method_states_dense_prompts_and_both_ends_of_its_steps(toys, tokenizer):
    model = toys.make_model("llama")
    engine, answerer, costs = answered(model, tokenizer, QUEST, batch_size=1, share_prefixes=False)
    engine.generate_until(toys.reply_requests()[5:6])
    answerer.close()
    [cost] = costs
    assert cost.prefill_stated.density == 1
    assert cost.prefill_stated.index == 0
    steps = range(cost.prompt_tokens + 1, cost.prompt_tokens + cost.new_tokens)
    stated = cost.decode_stated
    assert stated == Cells(
        read=sum(QUEST.kv_reads(n) for n in steps),
        least=sum(QUEST.kv_reads_least(n) for n in steps),
        dense=sum(steps),
        index=sum(QUEST.index_reads(n) for n in steps),
    )
    heads = model.config.num_attention_heads * model.config.num_hidden_layers
    assert stated.least * heads <= cost.decode_counted.read <= stated.read * heads


@pytest.mark.parametrize("kind", ["llama", "nsa"])
def test_without_a_method_cells_are_stated_alone(kind, toys, tokenizer, tmp_path):
    with ResponseStore.open(tmp_path / "responses.jsonl") as store:
        Engine(toys.make_model(kind), tokenizer, store=store).loglikelihood(toys.choice_requests())
        for response in store._responses.values():
            cost = response.cost
            assert cost.prefill_counted is None
            tokens = cost.prompt_tokens + cost.new_tokens - 1
            assert cost.prefill_stated.dense == tokens * (tokens + 1) // 2
            assert (cost.prefill_stated.density == 1) == (kind == "llama")


def test_costs_by_length_are_those_of_the_documents_of_that_length():
    tally = Tally()
    for document, tokens in enumerate((10, 20, 30, 40)):
        cost = Cost(prompt_tokens=tokens)
        response = Response(value="a", prompt_tokens=tokens, new_tokens=1).model_copy(update={"cost": cost})
        tally.add("task", "generate_until", response, document=document)
    conditions = Conditions(
        device_name="D", device="cpu", dtype="float32", backend="sdpa", batch_size="1", weights_bytes=1
    )
    sheet = tally.sheet(conditions, {"task": {0: 512, 1: 1024, 2: 512}, "other": {0: 512}})
    found = {length: (cost.prompt_tokens, cost.responses) for length, cost in sheet.by_length["task"].items()}
    assert found == {512: (40, 2), 1024: (20, 1)}
    assert list(sheet.by_length) == ["task"]
    assert type(sheet).model_validate(sheet.model_dump(mode="json")) == sheet


def test_rows_of_different_lengths_that_decode_together_keep_their_own_counts(toys, tokenizer):
    model = toys.make_model("llama")
    engine, answerer, costs = answered(model, tokenizer, EXACT, batch_size=8, share_prefixes=False)
    texts = [toys.make_text(seed, words) for seed, words in ((1, 30), (2, 120))]
    settings = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    engine.generate_until(
        [
            toys.request_of("generate_until", (text, settings), doc_id=number)
            for number, text in enumerate(texts)
        ]
    )
    answerer.close()
    assert len(costs) == 2
    assert max(cost.prompt_tokens for cost in costs) > 2 * min(cost.prompt_tokens for cost in costs)
    for cost in costs:
        counted, stated = cost.decode_counted, cost.decode_stated
        assert (counted.read, counted.dense) == pytest.approx(scaled(stated, model), rel=0.01)
