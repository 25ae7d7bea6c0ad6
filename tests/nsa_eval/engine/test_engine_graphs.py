"""Steps of fixed shapes, which a GPU replays from a CUDA graph, give the replies of ordinary steps.

On a CPU the same steps run kernel by kernel; tests/models/test_models_cuda.py captures them.
"""

import pytest
import torch

from nsa_eval.engine import Engine, _steps
from nsa_models import DecodeGraph
from nsa_models.families import ours


@pytest.fixture
def made(monkeypatch):
    """Uses steady steps on the CPU; the (rows, steps made) of each decoder that came of it."""
    decoders = []

    class Counted(DecodeGraph):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.steps = 0
            decoders.append(self)

        def step(self, tokens):
            self.steps += 1
            return super().step(tokens)

    monkeypatch.setattr(ours, "STEADY_DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(ours, "DecodeGraph", Counted)
    return lambda: [(len(decoder.cache.lengths), decoder.steps) for decoder in decoders]


def of_budgets(toys, budgets):
    """One request a budget, of unequal prompts."""
    requests = toys.reply_requests()[: len(budgets)]
    for request, budget in zip(requests, budgets, strict=True):
        request.args[1]["max_gen_toks"] = budget
    return requests


@pytest.mark.parametrize("settings", [{}, {"batch_size": 1}, {"batch_size": 4}, {"prefill_chunk": 9}])
@pytest.mark.parametrize("name", ["nsa", "full"])
def test_replies_are_the_same_with_and_without(tokenizer, toys, made, name, settings):
    requests = toys.reply_requests(max_gen_toks=40)
    model = toys.make_model(name)
    expected = Engine(model, tokenizer, cuda_graphs="off", **settings).generate_until(requests)
    assert made() == []
    assert Engine(model, tokenizer, cuda_graphs="auto", **settings).generate_until(requests) == expected
    assert sum(steps for _, steps in made()) > 39
    assert len(set(expected)) > 4


def test_sampled_replies_are_the_same(tokenizer, toys, made):
    requests = toys.reply_requests(max_gen_toks=30, do_sample=True, temperature=0.8)
    model = toys.make_model("nsa")
    expected = Engine(model, tokenizer, cuda_graphs="off").generate_until(requests)
    assert Engine(model, tokenizer, cuda_graphs="auto").generate_until(requests) == expected
    assert made()


@pytest.mark.parametrize("name", ["nsa", "full"])
def test_rows_that_end_stay_until_half_of_them_have(tokenizer, toys, made, name):
    """Six rows in one graph; three go on in one of their own, and too few steps are left for a third."""
    requests = of_budgets(toys, [60, 20, 8, 60, 30, 50])
    model = toys.make_model(name)
    alone = [Engine(model, tokenizer, cuda_graphs="off").generate_until([r])[0] for r in requests]
    engine = Engine(model, tokenizer, batch_size=6, share_prefixes=False, cuda_graphs="auto")
    assert engine.generate_until(requests) == alone
    assert made() == [(6, 29), (3, 30)]


def test_an_end_of_text_inside_a_graph_ends_its_row_alone(tokenizer, toys, made):
    requests = toys.reply_requests(max_gen_toks=24)
    model = toys.make_model("nsa")
    plain = Engine(model, tokenizer, cuda_graphs="off")
    model.generation_config.eos_token_id = [1, *tokenizer.encode(plain.generate_until(requests)[2])[6:7]]
    alone = [Engine(model, tokenizer, cuda_graphs="off").generate_until([r])[0] for r in requests]
    assert Engine(model, tokenizer, batch_size=9, cuda_graphs="auto").generate_until(requests) == alone
    assert made()
    assert len({len(reply) for reply in alone}) > 1


def test_short_replies_and_other_models_take_ordinary_steps(llama, tokenizer, toys, made):
    short = toys.reply_requests(max_gen_toks=_steps.MIN_STEPS)
    Engine(toys.make_model("nsa"), tokenizer, cuda_graphs="auto").generate_until(short)
    Engine(llama, tokenizer, cuda_graphs="auto").generate_until(toys.reply_requests(max_gen_toks=30)[:2])
    assert made() == []


def test_long_dense_rows_of_one_length_keep_the_kernel_without_a_mask(tokenizer, toys, made, monkeypatch):
    monkeypatch.setattr(ours, "_DENSE_STEADY_TOKENS", 8)
    [request] = toys.reply_requests(max_gen_toks=30)[2:3]
    Engine(toys.make_model("full"), tokenizer, cuda_graphs="auto").generate_until([request])
    assert made() == []
    Engine(toys.make_model("nsa"), tokenizer, cuda_graphs="auto").generate_until([request])
    assert made() == [(1, 29)]


def test_a_cpu_takes_ordinary_steps(tokenizer, toys, monkeypatch):
    monkeypatch.setattr("nsa_models.DecodeGraph", None)
    model = toys.make_model("nsa")
    assert Engine(model, tokenizer, cuda_graphs="auto").generate_until(
        toys.reply_requests(max_gen_toks=30)[:2]
    )
    assert model.device == torch.device("cpu")
