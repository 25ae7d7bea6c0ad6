"""Sparse methods under the engine: decode steps are told apart, batches and pieces change nothing."""

import pytest

from nsa_eval.config import EngineSpec
from nsa_eval.engine import Answerer, Engine
from nsa_eval.errors import UserError
from nsa_models.methods import attached_to, make_method

METHODS = {
    "exact-top": make_method("exact-top", 24, first=4, local=8),
    "quest:eval": make_method("quest", 16, page=4, dense_layers=[]),
    "quest:kernel": make_method("quest", 16, page=4, reading="kernel", dense_layers=[]),
    "streaming-llm": make_method("streaming-llm", 20, first=4),
    "power-attention": make_method("power-attention", window=1, block=4),
    "moba": make_method("moba", 16, chunk=8),
    "block-sparse": make_method("block-sparse", 16, block=4),
    "vertical-slash": make_method("vertical-slash", 12, vertical=6, first=2, local=2, last=8),
    "xattention": make_method("xattention", tau=0.5, stride=2, block=4),
}
SETTINGS = {
    "alone": {"batch_size": 1, "share_prefixes": False},
    "pieces": {"batch_size": 1, "share_prefixes": False, "prefill_chunk": 16},
    "batches": {"batch_size": 8},
    "auto": {},
}


def engine_of(model, tokenizer, method, **settings):
    """An Engine whose answerer has the method on its model, and the answerer."""
    spec = EngineSpec(**settings)
    answerer = Answerer(model, tokenizer, max_length=None, settings=spec, method=method)
    engine = Engine.over(
        tokenizer,
        answerer.facts,
        lambda requests, missing, emit: answerer.answer(requests, missing=missing, emit=emit),
        settings=spec,
    )
    return engine, answerer


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["llama", "full"])
def test_replies_and_scores_do_not_depend_on_how_they_are_run(kind, name, toys, tokenizer):
    model = toys.make_model(kind)
    found = {}
    for label, settings in SETTINGS.items():
        engine, answerer = engine_of(model, tokenizer, METHODS[name], **settings)
        found[label] = (
            engine.generate_until(toys.reply_requests()),
            [score for score, _ in engine.loglikelihood(toys.choice_requests())],
        )
        answerer.close()
    replies, scores = found["alone"]
    for label in SETTINGS:
        assert found[label][0] == replies, label
        assert found[label][1] == pytest.approx(scores, abs=1e-3), label
    dense = Engine(model, tokenizer)
    assert attached_to(model) is None
    assert dense.generate_until(toys.reply_requests()) != replies
    dense_scores = [score for score, _ in dense.loglikelihood(toys.choice_requests())]
    if METHODS[name].phase == "decode":
        assert dense_scores == pytest.approx(scores, abs=1e-3)
    else:
        assert dense_scores != pytest.approx(scores, abs=1e-3)


def test_what_decode_steps_read_is_what_the_method_says(toys, tokenizer):
    model = toys.make_model("llama")
    method = METHODS["quest:kernel"]
    engine, answerer = engine_of(model, tokenizer, method, batch_size=1)
    [request] = toys.reply_requests()[5:6]
    engine.generate_until([request])
    attached = attached_to(model)
    counts = attached.reads.decode
    steps = counts.queries // (model.config.num_attention_heads * model.config.num_hidden_layers)
    prompt = len(engine.prompts.generation(request.args[0], budget=1, origin=None).context)
    expected = sum(method.kv_reads(prompt + 1 + step) for step in range(steps))
    assert steps >= 2
    assert counts.read == expected * model.config.num_attention_heads * model.config.num_hidden_layers
    assert counts.dense > counts.read
    answerer.close()
    assert attached_to(model) is None


def test_the_audit_says_what_a_methods_scores_are(toys, tokenizer):
    engine, answerer = engine_of(toys.make_model("llama"), tokenizer, METHODS["quest:eval"])
    said = [event.detail for event in engine.audit]
    assert {event.kind for event in engine.audit} == {"method"}
    assert any("log-likelihoods are those of the dense model" in text for text in said)
    assert any("quality only" in text for text in said)
    answerer.close()


@pytest.mark.parametrize(
    ("kind", "message"), [("nsa", "sparse already"), ("sliding", "none of its layers is full attention")]
)
def test_a_model_that_cannot_take_a_method_is_refused_in_one_sentence(kind, message, toys, tokenizer):
    model = toys.make_model(kind)
    with pytest.raises(UserError, match=message) as caught:
        engine_of(model, tokenizer, METHODS["exact-top"])
    assert "\n" not in str(caught.value)
    assert attached_to(model) is None


def test_a_method_that_declares_less_is_obeyed(toys, tokenizer):
    from dataclasses import dataclass
    from typing import ClassVar

    @dataclass(frozen=True, kw_only=True)
    class Whole(type(METHODS["exact-top"])):
        """Exact-Top that may neither be read in pieces nor share prefixes."""

        chunked_prefill: ClassVar[bool] = False
        shared_prefixes: ClassVar[bool] = False
        lm_scores: ClassVar[bool] = False

    model = toys.make_model("llama")
    engine, answerer = engine_of(
        model, tokenizer, Whole(budget=24, first=4, local=8), prefill_chunk=8, batch_size=4
    )
    widths = []
    hook = model.model.register_forward_pre_hook(
        lambda module, given, named: widths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    replies = engine.generate_until(toys.reply_requests())
    hook.remove()
    reader, _ = answerer.prepared()
    assert (reader.continuable, reader.shared, reader.graphs) == (False, False, False)
    longest = max(len(tokenizer.encode(request.args[0])) for request in toys.reply_requests())
    assert max(widths) == longest > 8
    assert any("aren't a language model's" in event.detail for event in engine.audit)
    answerer.close()
    same, other = engine_of(model, tokenizer, METHODS["exact-top"])
    assert same.generate_until(toys.reply_requests()) == replies
    other.close()
