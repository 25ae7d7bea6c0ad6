"""The bundled checkpoints find a single needle in 4k tokens, by the engine and the task's own scorer."""

import pytest
from lm_eval import evaluate
from lm_eval.tasks import TaskManager

import nsa_models
from nsa_eval.engine import Engine
from nsa_tasks import task_spec

LEAST = 0.95
GRID = {"lengths": ["4k"], "depths": 10, "samples": 2}
"""20 questions, of which one may be missed: 0, 11, ..., 100 % of the text, two texts each."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["twin-nsa-64k", "twin-full-64k"])
def test_a_twin_finds_a_single_needle_in_4k_tokens(name):
    path = nsa_models.resolve(f"zoo:{name}")
    model = nsa_models.load_model(path, dtype="float32", device="cpu")
    engine = Engine(model, nsa_models.load_tokenizer(path))
    spec = task_spec("needle_single", GRID, tokenizer=path)
    loaded = TaskManager(include_defaults=False).load([spec])
    samples = evaluate(engine, loaded, bootstrap_iters=0)["samples"]["needle_single"]
    assert len(samples) == 20
    missed = [(sample["doc"]["depth"], sample["resps"]) for sample in samples if not sample["score"]]
    assert 1 - len(missed) / len(samples) >= LEAST, missed
