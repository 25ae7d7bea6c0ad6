"""Sparse methods under the engine: decode steps are told apart, batches and pieces change nothing."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from nsa_eval.config import EngineSpec
from nsa_eval.engine import Answerer, Engine, _loaded, _steps
from nsa_eval.errors import UserError
from nsa_models.families.uncached import UncachedFamily
from nsa_models.methods import MethodError, _listed, attached_to, make_method
from nsa_models.methods._seams import StockAttached

METHODS = {
    "exact-top": make_method("exact-top", 24, first=4, local=8),
    "quest:eval": make_method("quest", 16, page=4, dense_layers=[]),
    "quest:kernel": make_method("quest", 16, page=4, reading="kernel", dense_layers=[]),
    "streaming-llm": make_method("streaming-llm", 20, first=4),
    "h2o:drop": make_method("h2o", 20, recent=8, first=2),
    "h2o:mask": make_method("h2o", 20, recent=8, variant="mask"),
    "h2o:oneshot": make_method("h2o", 20, recent=8, variant="oneshot"),
    "infllm": make_method("infllm", 26, first=2, local=8, block=4, representatives=2, unit=8),
    "snapkv": make_method("snapkv", 16, window=4, kernel=3),
    "ada-snapkv": make_method("ada-snapkv", 16, window=4, kernel=3, local=4, first=1),
    "tidal-decode": make_method("tidal-decode", 8, choosing=[0], dense_layers=[]),
    "mustafar": make_method("mustafar", 2, local=4),
    "dhsa-fixed": make_method("dhsa-fixed", 16, chunk=2, block=8, first=4, local=8, tail=4),
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


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MethodError("exact-top: layer 0 has a sliding window"), "^exact-top: layer 0 has a sliding window$"),
        (RuntimeError("CUDA error: out of memory"), "too little device memory .*: CUDA error: out of memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_shows_in_a_models_first_forward_is_told_and_leaves_no_method(
    error, message, toys, tokenizer, monkeypatch
):
    def refuse(*_, **__):
        raise error

    model = toys.make_model("llama")
    with monkeypatch.context() as patched:
        patched.setattr(StockAttached, "forward", refuse)
        with pytest.raises(UserError, match=message):
            engine_of(model, tokenizer, METHODS["exact-top"])
    assert attached_to(model) is None
    engine, answerer = engine_of(model, tokenizer, METHODS["exact-top"])
    assert engine.generate_until(toys.reply_requests()[:1])
    answerer.close()


@pytest.mark.parametrize("name", ["seer-attention", "nosa"])
def test_weights_of_another_model_are_a_users_mistake(name, toys, tokenizer, tmp_path):
    """They are looked at layer by layer, when a layer needs them."""
    layer = "model.layers.{}.self_attn."
    of_layer = {
        "delta.weight": torch.zeros(3, 5),
        "A": torch.zeros(3),
        "attn_gate.attngate_linear_q.weight": torch.zeros(2, 2, 3, 3),
        "attn_gate.attngate_linear_k.weight": torch.zeros(2, 9, 3),
    }
    save_file(
        {layer.format(n) + key: value.clone() for n in (0, 1) for key, value in of_layer.items()},
        tmp_path / "w.safetensors",
    )
    options = {
        "nosa": {"kernel": 4, "stride": 2, "block": 4, "window": 0, "by_query": 8, "first_blocks": 0},
        "seer-attention": {"block": 4},
    }[name]
    method = make_method(name, 8, weights=str(tmp_path / "w.safetensors"), **options)
    model = toys.make_model("llama")

    def reply():
        engine, _ = engine_of(model, tokenizer, method)
        engine.generate_until(toys.reply_requests())

    with pytest.raises(UserError, match="layer 0"):
        reply()


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
    reader = answerer.loaded.reader()
    assert (reader.continuable, reader.shared, reader.graphs) == (False, False, False)
    longest = max(len(tokenizer.encode(request.args[0])) for request in toys.reply_requests())
    assert max(widths) == longest > 8
    assert any("aren't a language model's" in event.detail for event in engine.audit)
    answerer.close()
    same, other = engine_of(model, tokenizer, METHODS["exact-top"])
    assert same.generate_until(toys.reply_requests()) == replies
    other.close()


@pytest.mark.parametrize("name", ["quest:eval", "moba", "vertical-slash", "streaming-llm"])
def test_a_reply_that_ran_out_of_memory_is_what_it_is_alone(name, toys, tokenizer, monkeypatch):
    """Where steps read other keys than prompts do, what a reply has so far isn't read again as a prompt."""
    model, requests = toys.make_model("llama"), toys.reply_requests()[3:6]
    engine, answerer = engine_of(model, tokenizer, METHODS[name], batch_size=1)
    alone = engine.generate_until(requests)
    answerer.close()
    steps = []
    real = _steps.RowSlots.step

    def failing(self):
        steps.append(1)
        if len(steps) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self)

    monkeypatch.setattr(_steps.RowSlots, "step", failing)
    engine, answerer = engine_of(model, tokenizer, METHODS[name], batch_size=3)
    assert engine.generate_until(requests) == alone
    assert len(steps) > 6
    answerer.close()


def test_a_reply_that_would_be_read_again_as_a_prompt_is_refused(toys, tokenizer):
    """Behind a border of the frequencies a reply is read again: prompts aren't read as steps are."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 4,
        "long_factor": [8.0, 12.0, 18.0, 28.0],
    }
    config = toys.make_model("llama").config
    config.rope_parameters = rope
    model = LlamaForCausalLM(config).eval()
    prompt = tokenizer.decode(tokenizer.encode(toys.make_text(5, 60))[1:60])
    request = toys.request_of("generate_until", (prompt, {"until": [], "max_gen_toks": 12}))
    engine, answerer = engine_of(model, tokenizer, METHODS["moba"], batch_size=1)
    with pytest.raises(UserError, match=r"frequencies of .* change, so that its reply would be read again"):
        engine.generate_until([request])
    answerer.close()
    engine, answerer = engine_of(model, tokenizer, METHODS["power-attention"], batch_size=1)
    assert len(engine.generate_until([request])) == 1  # the same for prompts and steps
    answerer.close()


def test_the_audit_says_how_a_method_of_prompts_is_run(toys, tokenizer):
    engine, answerer = engine_of(toys.make_model("llama"), tokenizer, METHODS["vertical-slash"])
    said = " ".join(event.detail for event in engine.audit)
    for remark in (
        "decode steps are dense",
        "each prompt is read in one forward",
        "aren't a language model's",
    ):
        assert remark in said
    reader = answerer.loaded.reader()
    assert (reader.continuable, reader.shared, reader.either_phase) == (False, False, False)
    answerer.close()


@pytest.mark.parametrize(
    "reference",
    [
        make_method("moba", 32, chunk=16),
        make_method("block-sparse", 32, block=16),
        make_method("power-attention", window=1, block=16),
        make_method("quest", 16, page=4, dense_layers=[]),
    ],
    ids=lambda method: method.name,
)
def test_a_fast_method_answers_as_its_reference_and_says_what_ran(reference, toys, tokenizer, monkeypatch):
    model = toys.make_model("llama")
    fast = dataclasses.replace(reference, fast=True)
    with pytest.raises(UserError, match=f"{reference.name}: fast needs a GPU with Triton"):
        engine_of(model, tokenizer, fast)
    monkeypatch.setitem(_listed.BACKENDS, "cpu", "torch")
    found = []
    for method in (reference, fast):
        engine, answerer = engine_of(model, tokenizer, method)
        replies = engine.generate_until(toys.reply_requests())
        scores = [score for score, _ in engine.loglikelihood(toys.choice_requests())]
        found.append((replies, scores))
        said = " ".join(event.detail for event in engine.audit)
        assert ("quality only" in said) == method.simulated
        assert ("by kernels over lists" in said) == (not method.simulated)
        answerer.close()
    (replies, scores), (by_lists, scored_by_lists) = found
    assert by_lists == replies
    assert scored_by_lists == pytest.approx(scores, abs=1e-3)


@pytest.mark.parametrize("kind", ["llama", "full"])
@pytest.mark.parametrize("rows", [1, 3])
def test_kept_pages_go_with_rows_that_come_and_leave(kind, rows, toys, tokenizer, monkeypatch):
    """Prefixes are shared, rows join others and leave them; a step reads all keys only where rows changed."""
    monkeypatch.setitem(_listed.BACKENDS, "cpu", "torch")
    model, reference = toys.make_model(kind), METHODS["quest:eval"]
    found = []
    for method in (reference, dataclasses.replace(reference, fast=True)):
        engine, answerer = engine_of(model, tokenizer, method, batch_size=rows)
        replies = engine.generate_until(toys.reply_requests())
        found.append((replies, attached_to(model).reads))
        answerer.close()
    assert found[0][0] == found[1][0]
    reads = found[1][1]
    assert reads.decode == found[0][1].decode
    keys, queries = (
        count // model.config.num_attention_heads for count in (reads.decode.dense, reads.decode.queries)
    )
    assert 0 < reads.index.rebuilt < keys / 2  # masks are made of every key in each step
    assert 2 * keys / 4 <= reads.index.scored < 2 * (keys / 4 + queries)


@pytest.mark.parametrize(("name", "what"), [("quest:eval", "acts"), ("moba", "acts on prompts alone, not")])
def test_a_model_without_a_cache_takes_no_method(name, what, toys, tokenizer, monkeypatch):
    model = toys.make_model("llama")
    monkeypatch.setattr(_loaded, "family_of", lambda model, **_: UncachedFamily(model))
    with pytest.raises(
        UserError, match=f"{METHODS[name].label} {what} while decoding from a cache, and models of type"
    ):
        engine_of(model, tokenizer, METHODS[name])
    assert attached_to(model) is None


@pytest.mark.parametrize("fast", [False, True])
def test_automatic_batches_leave_room_for_what_a_method_keeps(fast, toys, tokenizer, monkeypatch):
    monkeypatch.setitem(_listed.BACKENDS, "cpu", "torch")
    method = make_method("quest", 64, page=4, dense_layers=[], fast=fast)  # a fourth more with its extremes
    _, plain = engine_of(toys.make_model("llama"), tokenizer, None)
    _, answerer = engine_of(toys.make_model("llama"), tokenizer, method)
    share = plain.loaded.limits().cache_tokens / answerer.loaded.limits().cache_tokens
    assert share == pytest.approx(1.25 if fast else 1.0, rel=1e-3)
