"""Memory that runs out anywhere between prompts and steps costs time, and no reply."""

import weakref

import pytest
import torch

from nsa_eval.engine import Engine, _running, _scheduling, _steps
from nsa_eval.engine._reader import Reader
from nsa_models.families import ours, packed
from nsa_models.packed import _slots
from nsa_models.static import CacheSlots


@pytest.fixture
def late(monkeypatch):
    """Slots on the CPU, a step late."""

    class Late(_steps.FixedSlots):
        def __init__(self, *args):
            super().__init__(*args)
            self.lag = 1

    monkeypatch.setattr(_steps, "FixedSlots", Late)
    monkeypatch.setattr(_running, "FixedSlots", Late)
    monkeypatch.setattr(ours, "STEADY_DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(packed, "DEVICES", ("cuda", "cpu"))


def alone(tokenizer, model, requests):
    return [Engine(model, tokenizer).generate_until([request])[0] for request in requests]


def failing_once(monkeypatch, owner, name, *, at):
    """`owner.name` raises OutOfMemoryError at its call number `at`; counts calls."""
    calls = []
    real = getattr(owner, name)

    def sometimes(*args, **given):
        calls.append(1)
        if len(calls) in at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*args, **given)

    monkeypatch.setattr(owner, name, sometimes)
    return calls


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("name", ["llama", "nsa"])
def test_oom_in_the_first_admit_where_tails_are_allocated(tokenizer, toys, name, at, monkeypatch, request):
    """The big allocation of slots is made lazily in admit(), not in family.slots()."""
    requests = toys.reply_requests(max_gen_toks=12)
    expected = alone(tokenizer, toys.make_model(name), requests)
    request.getfixturevalue("late")
    owner, method = (_slots._Tables, "__init__") if name == "llama" else (CacheSlots, "_made")
    calls = failing_once(monkeypatch, owner, method, at={at})
    # growing prompts, two slots at a time: the packed tables are rebuilt
    requests_in = requests
    engine = Engine(toys.make_model(name), tokenizer, batch_size=3, share_prefixes=False)
    assert engine.generate_until(requests_in) == expected
    assert calls


def test_fewer_slots_after_an_admit_that_failed_hold_the_prompts_beside_it(
    tokenizer, toys, monkeypatch, request
):
    """Two replies to one prompt are admitted without a forward; that fails, and six others stand behind."""
    head = toys.make_text(5, 120)
    prompts = [head] * 2 + [f"{head} {toys.make_text(seed, 9)}" for seed in range(6)]
    settings = {"until": [], "max_gen_toks": 5}
    asked = [
        toys.request_of("generate_until", (prompt, settings), doc_id=number)
        for number, prompt in enumerate(prompts)
    ]
    expected = alone(tokenizer, toys.make_model("llama"), asked)
    request.getfixturevalue("late")
    calls = failing_once(monkeypatch, _slots._Tables, "__init__", at={1})
    assert Engine(toys.make_model("llama"), tokenizer).generate_until(asked) == expected
    assert len(calls) > 1


@pytest.mark.parametrize("name", ["llama", "nsa", "full", "gpt2"])
@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("step", [2, 5])
def test_oom_in_the_middle_of_a_step(tokenizer, toys, name, slots, step, monkeypatch, request):
    """The lines that go on after a retreat must have their cache as it was before the failed step."""
    requests = toys.reply_requests(max_gen_toks=14)
    model = toys.make_model(name)
    expected = alone(tokenizer, model, requests)
    if slots:
        request.getfixturevalue("late")
    engine = Engine(toys.make_model(name), tokenizer)
    steps = []
    inside = []
    kinds = [_steps.RowSlots, _running.FixedSlots]
    for kind in kinds:
        real = kind.step

        def counted(self, real=real):
            steps.append(1)
            inside.append(1)
            try:
                return real(self)
            finally:
                inside.pop()

        monkeypatch.setattr(kind, "step", counted)
    engine._answerer.loaded.reader()
    last = engine.model.get_input_embeddings()
    layers = [m for n, m in engine.model.named_modules() if n.endswith(("layers.1", "h.1"))]
    assert len(layers) == 1

    def hook(module, args):
        if inside and len(steps) == step:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    layers[0].register_forward_pre_hook(hook)
    assert last is not None
    assert engine.generate_until(requests) == expected


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("name", ["llama", "nsa"])
def test_oom_while_parked_lines_are_read_again(tokenizer, toys, name, slots, monkeypatch, request):
    """Two failures: a step, and the forward that reads the parked lines again. No reply may be lost."""
    prompts = [toys.make_text(seed, 40) for seed in range(6)]
    ids = [tokenizer.encode(p)[:60] for p in prompts]
    prompts = [tokenizer.decode(one, skip_special_tokens=True) for one in ids]
    asked = [
        toys.request_of("generate_until", (p, {"until": [], "max_gen_toks": 10}), doc_id=n)
        for n, p in enumerate(prompts)
    ]
    expected = alone(tokenizer, toys.make_model(name), asked)
    if slots:
        request.getfixturevalue("late")
    for kind in (_steps.RowSlots, _running.FixedSlots):
        failing_once(monkeypatch, kind, "step", at={3})
    engine = Engine(toys.make_model(name), tokenizer, share_prefixes=False)
    real = _scheduling.Scheduler._prompts
    failed = []

    def prompts_(self, entries, rows):
        if any(e.line.tokens for e in entries) and len(entries) > 1 and not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, entries, rows)

    monkeypatch.setattr(_scheduling.Scheduler, "_prompts", prompts_)
    assert engine.generate_until(asked) == expected
    assert failed


def test_more_parked_lines_than_slots(tokenizer, toys, monkeypatch, late):
    """Retreats add up: parked lines of one length can be more than there are slots."""
    prompts = [toys.make_text(seed, 40) for seed in range(24)]
    prompts = [tokenizer.decode(tokenizer.encode(p)[:40], skip_special_tokens=True) for p in prompts]
    asked = [
        toys.request_of("generate_until", (p, {"until": [], "max_gen_toks": 6}), doc_id=n)
        for n, p in enumerate(prompts)
    ]
    model = toys.make_model("llama")
    monkeypatch.setattr(packed, "DEVICES", ("cuda",))
    expected = alone(tokenizer, model, asked)
    monkeypatch.setattr(packed, "DEVICES", ("cuda", "cpu"))
    make = packed.PackedFamily.slots

    def small_device(self, count, **given):
        if count > 12:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return make(self, count, **given)

    monkeypatch.setattr(packed.PackedFamily, "slots", small_device)
    # three steps in turn: parked lines of one length add up
    real = _running.FixedSlots.step
    calls = []

    def step(self):
        calls.append(1)
        if len(calls) in {1, 2, 3}:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self)

    monkeypatch.setattr(_running.FixedSlots, "step", step)
    engine = Engine(toys.make_model("llama"), tokenizer, share_prefixes=False)
    assert engine.generate_until(asked) == expected


@pytest.mark.parametrize("name", ["llama", "sliding", "full"])
@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_oom_while_prefixes_are_read(tokenizer, toys, name, slots, kind, monkeypatch, request):
    """A batch of contexts is halved: families that can't join rows must visit the halves apart."""
    from nsa_eval.engine._traversal import Traversal

    heads = [
        tokenizer.decode(tokenizer.encode(toys.make_text(s, 150))[:150], skip_special_tokens=True)
        for s in range(4)
    ]
    asked = [
        toys.request_of(
            kind,
            (f"{head} {toys.make_text(40 + n, 3)}", {"until": [], "max_gen_toks": 4})
            if kind == "generate_until"
            else (f"{head} {toys.make_text(40 + n, 3)}", f" {toys.make_text(80 + n, 2)}"),
            doc_id=n + 10 * m,
        )
        for m, head in enumerate(heads)
        for n in range(3)
    ]
    model = toys.make_model(name)
    plain = [getattr(Engine(model, tokenizer), kind)([one])[0] for one in asked]
    if slots:
        request.getfixturevalue("late")
    real = Traversal._read
    failed = []

    def read(self, nodes, depth, rows):
        if len(nodes) > 1 and not failed:
            failed.append(len(nodes))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, nodes, depth, rows)

    monkeypatch.setattr(Traversal, "_read", read)
    found = getattr(Engine(toys.make_model(name), tokenizer, batch_size=4), kind)(asked)
    if kind == "loglikelihood":
        for (a, b), (c, d) in zip(found, plain, strict=True):
            assert a == pytest.approx(c, abs=2e-4)
            assert b == d
    else:
        assert found == plain
    assert failed


def test_oom_at_an_inner_prefix_drains_first(tokenizer, toys, monkeypatch, late):
    """Rows that decode are still there when the next inner prefix is read: they have to end first."""
    from nsa_eval.engine._traversal import Traversal

    def text(seed, n):
        return tokenizer.decode(tokenizer.encode(toys.make_text(seed, n))[:n], skip_special_tokens=True)

    asked = []
    for top in range(2):
        for sub in range(2):
            for n in range(3):
                prompt = f"{text(top, 100)} {text(10 + 2 * top + sub, 100)} {text(30 + n, 5)}"
                asked.append(
                    toys.request_of(
                        "generate_until", (prompt, {"until": [], "max_gen_toks": 20}), doc_id=len(asked)
                    )
                )
    model = toys.make_model("llama")
    monkeypatch.setattr(packed, "DEVICES", ("cuda",))
    expected = alone(tokenizer, model, asked)
    monkeypatch.setattr(packed, "DEVICES", ("cuda", "cpu"))
    real = Traversal._read
    session = []
    run = _scheduling.Scheduler.run
    monkeypatch.setattr(
        _scheduling.Scheduler, "run", lambda self, tree: session.append(self) or run(self, tree)
    )
    failed = []

    def read(self, nodes, depth, rows):
        if nodes[0].children and session[-1].running.lines:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, nodes, depth, rows)

    monkeypatch.setattr(Traversal, "_read", read)
    assert Engine(toys.make_model("llama"), tokenizer).generate_until(asked) == expected
    assert failed


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
@pytest.mark.parametrize("name", ["llama", "nsa", "gpt2"])
def test_a_shortage_beside_the_allocator_makes_batches_smaller_too(tokenizer, toys, name, kind, monkeypatch):
    """cuBLAS and CUDA itself have no error class for it."""
    requests = toys.reply_requests(max_gen_toks=6) if kind == "generate_until" else toys.choice_requests()
    expected = getattr(Engine(toys.make_model(name), tokenizer, batch_size=1), kind)(requests)
    engine = Engine(toys.make_model(name), tokenizer, batch_size=4)
    engine._answerer.loaded.reader()
    failed = []

    def once(module, args, given):
        rows = next(x for x in (*args, *given.values()) if isinstance(x, torch.Tensor)).shape[0]
        if not failed:
            failed.append(rows)
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    engine.model.register_forward_pre_hook(once, with_kwargs=True)
    for part in engine.model.children():
        part.register_forward_pre_hook(once, with_kwargs=True)
    found = getattr(engine, kind)(requests)
    if kind == "generate_until":
        assert found == expected
    else:
        assert [logprob for logprob, _ in found] == pytest.approx(
            [logprob for logprob, _ in expected], abs=1e-4
        )
    assert failed


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
@pytest.mark.parametrize("heads", [0, 1, 4])
def test_what_a_failed_batch_had_read_is_let_go_before_the_next(tokenizer, toys, kind, heads, monkeypatch):
    """Halves of a batch need the room of the whole: its caches, and activations in the frames of its error.

    Without a common beginning prompts fail, with one what follows it, with four those beginnings.
    """
    model = toys.make_model("full")
    begin = [f"{toys.make_text(90 + number, 120)} " for number in range(heads)] or [""]
    asked = [
        toys.request_of(
            kind,
            (f"{begin[n % len(begin)]}{toys.make_text(n, 20)}", {"until": [], "max_gen_toks": 4})
            if kind == "generate_until"
            else (f"{begin[n % len(begin)]}{toys.make_text(n, 20)}", f" {toys.make_text(50 + n, 2)}"),
            doc_id=n,
        )
        for n in range(8)
    ]
    engine = Engine(model, tokenizer)
    expected = getattr(engine, kind)(asked)
    real, held, seen = Reader.read, [], []

    def read(self, pieces, rows, **given):
        if held:
            seen.append([ref() is None for ref in held])
        real(self, pieces, rows, **given)
        if not held and len(pieces) > 1:
            activations = torch.zeros(1)
            held.append(weakref.ref(activations))
            if rows is not None:
                held.append(weakref.ref(rows.cache))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Reader, "read", read)
    found = getattr(Engine(model, tokenizer), kind)(asked)
    assert all(map(all, seen))
    assert seen
    if kind == "generate_until":
        assert found == expected
    else:
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
