"""A budget that is a share of each prompt: every text is answered as under the budget that it comes to."""

import pytest

from nsa_eval.config import EngineSpec
from nsa_eval.engine import Answerer, Engine
from nsa_eval.errors import UserError
from nsa_models.methods import MethodError, attached_to, is_share, make_method, method_at

OPTIONS = {"first": 4, "local": 8}


def engine_of(model, tokenizer, method, **settings):
    spec = EngineSpec(**settings)
    answerer = Answerer(model, tokenizer, max_length=None, settings=spec, method=method)
    found = []

    def answer(requests, missing, emit):
        def kept(responses):
            found.extend(responses.values())
            emit(responses)

        answerer.answer(requests, missing=missing, emit=kept)

    return Engine.over(tokenizer, answerer.facts, answer, settings=spec), answerer, found


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {}], ids=["alone", "auto"])
def test_every_reply_is_that_of_the_budget_its_prompt_comes_to(settings, toys, tokenizer):
    model = toys.make_model("llama")
    share = method_at("exact-top", "60%", **OPTIONS)
    engine, answerer, found = engine_of(model, tokenizer, share, **settings)
    requests = toys.reply_requests()
    replies = engine.generate_until(requests)
    scores = engine.loglikelihood(toys.choice_requests())
    answerer.close()
    assert attached_to(model) is None
    budgets = set()
    for request, reply in zip(requests, replies, strict=True):
        tokens = len(engine.prompts.generation(request.args[0], budget=1, origin=None).context)
        budgets.add(share.budget(tokens))
        method = make_method("exact-top", share.budget(tokens), **OPTIONS)
        alone, other, _ = engine_of(model, tokenizer, method, batch_size=1)
        assert alone.generate_until([request]) == [reply]
        other.close()
    assert len(budgets) > 1
    for request, (score, _) in list(zip(toys.choice_requests(), scores, strict=True))[-3:]:
        prompt = engine.prompts.pair(*request.args[:2], None)
        tokens = len(prompt.context) + len(prompt.continuation)
        method = make_method("exact-top", share.budget(tokens), **OPTIONS)
        alone, other, _ = engine_of(model, tokenizer, method, batch_size=1)
        assert alone.loglikelihood([request])[0][0] == pytest.approx(score, abs=1e-3)
        other.close()
    counted = [response.cost.prefill_counted for response in found]
    assert all(cells is not None and 0 < cells.read <= cells.dense for cells in counted)


def test_budgets_are_whole_pages_and_never_none():
    share = method_at("quest", "10%", page=4, dense_layers=[])
    assert [share.budget(tokens) for tokens in (1, 159, 160, 1000, 16384)] == [16, 16, 16, 96, 1632]
    assert method_at("quest", "6.25 %").budget(1024) == 64
    assert share.label == "quest@10%-dense_layers=none-page=4"
    described = share.describe()
    assert described["parameters"]["budget"] == "10%"
    assert described["declarations"]["phase"] == "decode"


SMALL_BLOCKS = {"kernel": 4, "stride": 2, "window": 0, "dense_length": 0}


@pytest.mark.parametrize(("block", "step"), [(4, 16), (64, 64), (24, 48), ("24", 48)])
def test_shares_of_whole_blocks_are_multiples_of_them(block, step):
    share = method_at("infllm-v2", "10%", block=block, **SMALL_BLOCKS)
    assert share.step == share.describe()["parameters"]["budget_step"] == step
    budgets = {share.budget(tokens) for tokens in range(1300, 9000, 77)}
    assert len(budgets) > 5
    assert all(share.at(budget).budget % step == 0 for budget in budgets)
    assert share.label.startswith("infllm-v2@10%-")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mustafar", {}, r"budget can't be a share of the prompt, got '10%': it is elements kept"),
        ("quest", {"page": 0}, r"page must be at least 1 token, got 0$"),
        ("nosa", {}, r"weights must name .* got ''$"),
        ("infllm-v2", {"block": 0}, r"block must be at least 1 token, got 0$"),
    ],
)
def test_what_a_larger_share_would_not_mend_is_not_said_to_be_mended_by_one(name, options, message):
    with pytest.raises(MethodError, match=message):
        method_at(name, "10%", **options)


@pytest.mark.parametrize("budget", ["0%", "101 %"])
def test_shares_lie_within_the_prompt(budget):
    with pytest.raises(MethodError, match="above 0 and at most 100 %"):
        method_at("quest", budget)


def test_other_budgets_are_tokens():
    assert method_at("quest", "2k") == make_method("quest", 2048)
    assert not is_share(10)
    assert not is_share("10")


def test_a_prompt_too_short_for_the_share_says_what_to_do(toys, tokenizer):
    share = method_at("exact-top", "10%", first=16, local=32)
    engine, answerer, _ = engine_of(toys.make_model("llama"), tokenizer, share)
    with pytest.raises(UserError, match=r"at least first \+ local = 48.*10 % of a prompt.*longer prompts"):
        engine.generate_until(toys.reply_requests())
    answerer.close()


def test_what_a_method_does_is_said_once_and_by_the_share(toys, tokenizer):
    share = method_at("exact-top", "25%", **OPTIONS)
    engine, answerer, _ = engine_of(toys.make_model("llama"), tokenizer, share)
    engine.generate_until(toys.reply_requests())
    events = [event.detail for event in answerer.facts.events if event.kind == "method"]
    answerer.close()
    assert events
    assert len(set(events)) == len(events)
    assert all(event.startswith("exact-top@25%-first=4-local=8: ") for event in events)
