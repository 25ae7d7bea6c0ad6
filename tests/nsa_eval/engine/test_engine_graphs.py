"""Rows in slots, which a GPU steps through in a CUDA graph, give the replies of ordinary steps.

On a CPU the same steps run kernel by kernel; tests/models/test_models_cuda.py captures them.
"""

import pytest
import torch

from nsa_eval.engine import Engine, _steps
from nsa_eval.engine._prompts import Origin
from nsa_models.families import ours, packed
from nsa_models.packed import PackedSlots
from nsa_models.static import CacheSlots

# Whose replies are compared, and the family that has slots for it.
MODELS = ["llama", "qwen2", "gpt2", "full", "nsa"]
SETTINGS = [{}, {"batch_size": 1}, {"batch_size": 2}, {"prefill_chunk": 9}, {"share_prefixes": False}]


@pytest.fixture
def slots(monkeypatch):
    """Uses slots on the CPU, with a step under way while the host looks at the last; the slots made."""
    made = []

    def counting(kind):
        class Counted(kind):
            def __init__(self, *args, **given):
                super().__init__(*args, **given)
                self.steps, self.entered = 0, 0
                made.append(self)

            def admit(self, *args):
                self.entered += 1
                super().admit(*args)

            def step(self):
                self.steps += 1
                return super().step()

        return Counted

    class Late(_steps.FixedSlots):
        def __init__(self, *args):
            super().__init__(*args)
            self.lag = 1

    monkeypatch.setattr(_steps, "FixedSlots", Late)
    monkeypatch.setattr("nsa_eval.engine._running.FixedSlots", Late)
    monkeypatch.setattr(ours, "STEADY_DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(packed, "DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(ours, "_Slots", counting(ours._Slots))
    monkeypatch.setattr(packed, "_Slots", counting(packed._Slots))
    return made


@pytest.fixture
def ordinary(tokenizer, toys):
    """Replies of ordinary steps, one request at a time."""

    def replies(name, requests):
        model = toys.make_model(name)
        return [Engine(model, tokenizer).generate_until([request])[0] for request in requests]

    return replies


def of_budgets(toys, budgets):
    """One request a budget, of unequal prompts."""
    requests = toys.reply_requests()[: len(budgets)]
    for request, budget in zip(requests, budgets, strict=True):
        request.args[1]["max_gen_toks"] = budget
    return requests


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_replies_are_the_same_in_slots(tokenizer, toys, ordinary, request, name, settings):
    requests = toys.reply_requests(max_gen_toks=25)
    expected = ordinary(name, requests)
    slots = request.getfixturevalue("slots")
    engine = Engine(toys.make_model(name), tokenizer, **settings)
    assert engine.generate_until(requests) == expected
    assert {type(one).__mro__[2] for one in slots} == {CacheSlots if name == "nsa" else PackedSlots}
    assert sum(one.entered for one in slots) == len(requests)
    assert len(set(expected)) > 4


@pytest.mark.parametrize("name", ["llama", "nsa"])
def test_rows_take_the_places_of_those_that_end(tokenizer, toys, ordinary, request, name):
    """Two slots for eight replies of very unequal length: far fewer steps than pairs in turn would take."""
    requests = of_budgets(toys, [5, 8, 9, 6, 12, 7, 10, 60])  # the longest prompt enters first
    expected = ordinary(name, requests)
    slots = request.getfixturevalue("slots")
    engine = Engine(toys.make_model(name), tokenizer, batch_size=2, share_prefixes=False)
    assert engine.generate_until(requests) == expected
    assert [one.entered for one in slots] == [8]
    assert slots[0].steps < 70  # 59 for the longest, and one more for each look that comes a step late


@pytest.mark.parametrize("name", ["llama", "nsa"])
def test_sampled_replies_are_the_same_in_slots(tokenizer, toys, ordinary, request, name):
    requests = toys.reply_requests(max_gen_toks=20, do_sample=True, temperature=0.8)
    expected = ordinary(name, requests)
    request.getfixturevalue("slots")
    assert Engine(toys.make_model(name), tokenizer, batch_size=3).generate_until(requests) == expected


@pytest.mark.parametrize("name", ["llama", "nsa"])
def test_an_end_of_text_ends_its_row_alone(tokenizer, toys, request, name):
    requests = toys.reply_requests(max_gen_toks=24)
    model = toys.make_model(name)
    reply = Engine(model, tokenizer).generate_until(requests)[2]
    model.generation_config.eos_token_id = [1, *tokenizer.encode(reply)[6:7]]
    alone = [Engine(model, tokenizer).generate_until([one])[0] for one in requests]
    slots = request.getfixturevalue("slots")
    assert Engine(model, tokenizer, batch_size=4).generate_until(requests) == alone
    assert slots
    assert len({len(one) for one in alone}) > 1


@pytest.mark.parametrize("settings", [{}, {"prefill_chunk": 9}, {"share_prefixes": False}, {"batch_size": 3}])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "full", "full-half-rope"])
@pytest.mark.usefixtures("slots")
def test_packed_rows_have_the_scores_of_plain_forwards(tokenizer, toys, name, settings):
    requests, rolling = (
        toys.choice_requests(),
        [toys.request_of("loglikelihood_rolling", (toys.make_text(seed, 40 * seed),)) for seed in (1, 2, 5)],
    )
    model = toys.make_model(name)
    engine = Engine(model, tokenizer, max_length=128, **settings)
    found = engine.loglikelihood(requests)
    found += [(value, None) for value in engine.loglikelihood_rolling(rolling)]
    assert engine._answerer.loaded.reader().family.name == "packed rows"
    for request, (value, greedy) in zip([*requests, *rolling], found, strict=True):
        if request in rolling:
            pairs = engine.prompts.windows(request.args[0], Origin("toy", 0)).pairs
        else:
            pair = engine.prompts.pair(*request.args, origin=Origin("toy", 0))
            pairs = [(pair.context, pair.continuation)]
        total, best = 0.0, True
        for context, tail in pairs:
            with torch.no_grad():
                logits = model(torch.tensor([(context + tail)[:-1]])).logits[0, -len(tail) :]
            picked = torch.tensor(tail)
            total += float(logits.log_softmax(-1).gather(-1, picked[:, None]).sum())
            best &= bool((logits.argmax(-1) == picked).all())
        assert value == pytest.approx(total, abs=2e-4)
        assert greedy in (None, best)


def test_a_shared_prefix_is_kept_once(tokenizer, toys, slots):
    """Nine prompts behind one head: the blocks of keys in memory hold the head's tokens a single time."""
    head = toys.make_text(3, 120)
    prompts = [f"{head} {toys.make_text(seed, 5)}" for seed in range(9)]
    asked = [
        toys.request_of("generate_until", (prompt, {"until": [], "max_gen_toks": 6}), doc_id=number)
        for number, prompt in enumerate(prompts)
    ]
    model = toys.make_model("llama")
    engine = Engine(model, tokenizer)
    seen = []
    step = packed._Slots.step

    def looking(self):
        chains = [chain for chain in self._chains if chain]
        blocks = {span.block for chain in chains for span in chain}
        seen.append((sum(block.k[0].shape[0] for block in blocks), len(chains)))
        return step(self)

    packed._Slots.step = looking
    engine.generate_until(asked)
    tokens = [len(tokenizer.encode(prompt)) for prompt in prompts]
    shared = len(tokenizer.encode(head))
    together = [kept for kept, rows in seen if rows == 9]
    assert together
    assert max(together) <= shared + sum(length - shared + 2 for length in tokens)


@pytest.mark.parametrize("name", ["llama", "nsa"])
def test_too_little_memory_for_the_slots_makes_fewer(tokenizer, toys, ordinary, request, name, monkeypatch):
    requests = toys.reply_requests()
    expected = ordinary(name, requests)
    slots = request.getfixturevalue("slots")
    family = packed.PackedFamily if name == "llama" else ours.OursFamily
    asked = []
    make = family.slots

    def small_device(self, count, **given):
        asked.append(count)
        if count > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return make(self, count, **given)

    monkeypatch.setattr(family, "slots", small_device)
    assert Engine(toys.make_model(name), tokenizer).generate_until(requests) == expected
    assert asked == [9, 5, 3]
    assert [len(one.tokens) for one in slots] == [3]


def test_a_cpu_takes_ordinary_steps(tokenizer, toys, monkeypatch):
    monkeypatch.setattr(ours, "_Slots", None)
    model = toys.make_model("nsa")
    assert Engine(model, tokenizer).generate_until(toys.reply_requests(max_gen_toks=30)[:2])
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["llama", "nsa"])
def test_many_replies_to_one_prompt_read_it_once(tokenizer, toys, request, name, monkeypatch):
    """Their common last token is fed by a step: no forward for any of them alone."""
    settings = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.5}
    prompt = toys.make_text(5, 400)
    asked = [toys.request_of("generate_until", (prompt, settings), doc_id=number) for number in range(6)]
    model = toys.make_model(name)
    expected = [Engine(model, tokenizer, share_prefixes=False).generate_until([one])[0] for one in asked]
    request.getfixturevalue("slots")
    engine = Engine(model, tokenizer)
    reader = engine._answerer.loaded.reader()
    forward, read = reader._forward, []
    monkeypatch.setattr(
        reader,
        "_forward",
        lambda tokens, counts, *rest: read.append(sum(counts)) or forward(tokens, counts, *rest),
    )
    assert engine.generate_until(asked) == expected
    assert sum(read) == len(tokenizer.encode(prompt)) - 1
    assert len(set(expected)) > 3
