"""The engine as lm-eval makes it: by name and model arguments."""

import importlib

import lm_eval
import pytest
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import nsa_eval.engine
import nsa_tasks
from nsa_eval.engine import Engine
from nsa_eval.errors import UserError
from nsa_models import ModelLoadError


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoints):
    return str(tiny_checkpoints[0])


@pytest.mark.parametrize("as_text", [True, False])
def test_lm_eval_runs_it_by_name(checkpoint, as_text):
    arguments = {"pretrained": checkpoint, "dtype": "float32", "max_length": 400}
    grid = {"lengths": [256], "depths": 2, "samples": 1, "new_tokens": 4, "tokenizer": checkpoint}
    tasks = TaskManager(include_defaults=False, include_path=str(nsa_tasks.TASKS_DIR), metadata=grid)
    results = lm_eval.simple_evaluate(
        model="nsa-eval",
        model_args=",".join(f"{k}={v}" for k, v in arguments.items()) if as_text else arguments,
        tasks=["needle_single"],
        task_manager=tasks,
        batch_size="2",
        device="cpu",
    )
    assert results["results"]["needle_single"]["sample_len"] == 2
    assert results["config"]["model"] == "nsa-eval"
    assert results["config"]["model_num_parameters"] > 0


def test_every_argument_arrives(checkpoint):
    engine = Engine.create_from_arg_string(
        f"pretrained={checkpoint},dtype=bfloat16,max_length=128,truncation=middle,prefill_chunk=64,"
        "share_prefixes=False,cuda_graphs=off,add_bos_token=True,batch_size=3,trust_remote_code=false,backend=auto",
        {"batch_size": 1, "device": "cpu", "max_batch_size": None},
    )
    assert str(engine.model.dtype) == "torch.bfloat16"
    assert (engine.batch_size, engine.max_length, engine.settings.prefill_chunk) == (3, 128, 64)
    assert engine.settings.share_prefixes is False
    assert engine.settings.cuda_graphs == "off"
    assert (engine.prompts.truncation, engine.prompts.add_bos_token) == ("middle", True)


@pytest.mark.parametrize(("given", "batch_size"), [("auto:4", "auto"), ("8", 8), (None, "auto")])
def test_lm_evals_batch_sizes(checkpoint, given, batch_size):
    engine = Engine.create_from_arg_obj({"pretrained": checkpoint}, {"batch_size": given})
    assert engine.batch_size == batch_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("dtype=float32", "names no checkpoint: give --model_args pretrained=PATH"),
        ("pretrained={},parallelize=True", "--model_args parallelize: unknown argument"),
        ("pretrained={},max_lenght=9", "unknown argument; did you mean 'max_length'?"),
        ("pretrained={},max_length=many", "--model_args max_length=many: expected a length in tokens"),
        ("pretrained={},truncation=right", "--model_args truncation=right: Input should be 'error', 'left'"),
        ("pretrained={},batch_size=big", "--model_args batch_size=big: expected auto or a number of rows"),
    ],
)
def test_a_wrong_argument_is_one_message(checkpoint, arguments, message):
    with pytest.raises(UserError) as caught:
        Engine.create_from_arg_string(arguments.format(checkpoint))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_cannot_be_loaded(tmp_path):
    with pytest.raises(ModelLoadError):
        Engine.create_from_arg_obj({"pretrained": str(tmp_path)})


def test_registering_again_changes_nothing():
    assert get_model("nsa-eval") is Engine
    assert importlib.reload(nsa_eval.engine).Engine is Engine
    assert get_model("nsa-eval") is Engine
    assert get_model("hf") is not Engine
