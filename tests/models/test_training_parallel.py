"""Several processes train as one does: the same batches, losses and weights, stopped or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from nsa_models.train import loop
from nsa_models.train.corpus import load_corpus
from nsa_models.train.facts import FactWriter
from nsa_models.train.loop import Stopped, train
from nsa_models.train.parallel import FlatGradients, Group
from nsa_models.train.recipe import Recipe

Plain = dict[str, Any]


def start(recipe: Plain, processes: int, *options: str) -> subprocess.Popen[str]:
    path = Path(recipe["output"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    launcher = [
        *("-m", "torch.distributed.run", "--master-addr", "127.0.0.1", "--master-port", "0"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--nproc-per-node", str(processes)),
    ]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else ()), "-m", "nsa_models.train", str(path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def run(recipe: Plain, processes: int, *options: str) -> str:
    process = start(recipe, processes, *options)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == (3 if processes == 1 and options else 0), out
    return out


def rows(recipe: Plain) -> list[Plain]:
    lines = (Path(recipe["output"]) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    times = ("seconds", "tokens_per_second")
    return [{key: value for key, value in json.loads(line).items() if key not in times} for line in lines]


def weights(recipe: Plain) -> dict[str, Tensor]:
    return dict(torch.load(Path(recipe["output"]) / "state.pt", weights_only=True)["model"])


def alike(first: Plain, second: Plain) -> None:
    """Equal but for float32's rounding of a sum in another order."""
    for one, other in zip(rows(first), rows(second), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if isinstance(value, float) and key != "lr":
                assert other[key] == pytest.approx(value, rel=1e-3), key
            else:
                assert other[key] == value, key
    torch.testing.assert_close(weights(first), weights(second), rtol=1e-2, atol=1e-3)


@pytest.fixture
def short(recipe: Plain) -> Plain:
    """Eight steps over two stages; three rows in a batch of the longest, so that shares are uneven."""
    recipe["batch_tokens"], recipe["micro_batch_tokens"] = 1536, 512
    recipe["stages"] = [{"lengths": [256], "max_steps": 5}, {"lengths": [512, 256], "max_steps": 3}]
    recipe["optim"] = {"lr": 1e-3, "warmup_steps": 2}
    recipe["test_every"] = 4
    return recipe


def elsewhere(recipe: Plain, folder: str, **changes: Any) -> Plain:
    return {**recipe, "output": str(Path(recipe["output"]).parent / folder), **changes}


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_two_processes_train_as_one(short: Plain, attention: str) -> None:
    short["model"]["attention"] = attention
    train(Recipe.model_validate(short), log=lambda _: None)
    two = elsewhere(short, "two")
    out = run(two, 2)
    assert out.count("step 8 ") == 1  # one of them speaks
    assert out.splitlines()[-1] == f"model in {Path(two['output']) / 'model'}"
    alike(short, two)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(short: Plain) -> None:
    train(Recipe.model_validate(short), log=lambda _: None)
    pieces = elsewhere(short, "pieces", save_every=1)
    assert "stopped at step 1 with everything saved" in run(pieces, 2, "--minutes", "0")
    with pytest.raises(Stopped, match="stopped at step 2"):
        train(Recipe.model_validate(pieces), minutes=0.0, log=lambda _: None)
    assert "going on from step 2" in run(pieces, 3)
    assert [row["step"] for row in rows(pieces)] == list(range(1, 9))
    alike(short, pieces)


@pytest.mark.slow
def test_killed_processes_leave_a_state_to_go_on_from(short: Plain) -> None:
    short["stages"][0]["max_steps"] = 40
    killed = elsewhere(short, "killed", save_every=3)
    process = start(killed, 2)
    log = Path(killed["output"]) / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.is_file() and len(log.read_text().splitlines()) >= 8) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    train(Recipe.model_validate(short), log=lambda _: None)
    train(Recipe.model_validate(killed), log=lambda _: None)
    alike(short, killed)


@pytest.mark.slow
def test_a_signal_to_all_processes_stops_with_everything_saved(short: Plain) -> None:
    short["stages"][0]["max_steps"] = 400
    stopped = elsewhere(short, "stopped", workers=1)
    process = start(stopped, 1)
    log = Path(stopped["output"]) / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.is_file() and len(log.read_text().splitlines()) >= 5) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # as schedulers do it: to the workers, too
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3, out
    state = torch.load(Path(stopped["output"]) / "state.pt", weights_only=True)
    assert f"stopped at step {state['progress']['step']} with everything saved" in out


# --- in one process ---


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 128])
def test_shares_are_even_and_together_all(size: int, count: int) -> None:
    shares = [Group(rank=rank, size=size).share(count) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_shares_of_a_batch_are_its_rows(recipe: Plain) -> None:
    made = Recipe.model_validate({**recipe, "batch_tokens": 2048})
    writer = FactWriter(load_corpus(made.text), made.facts, made.seed)

    def batch(group: Group) -> tuple[Tensor, Tensor]:
        return loop._StageData(writer, made, 0, made.stages[0], group)[3]

    whole = batch(Group())
    parts = [batch(Group(rank=rank, size=3)) for rank in range(3)]
    for part, all_rows in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(part), all_rows)
    nothing, _ = loop._StageData(writer, made, 0, made.stages[0], Group(rank=0, size=9))[3]
    assert nothing.shape == (0, 256)  # eight rows for nine processes


def test_flat_gradients_are_the_parameters_own(recipe: Plain) -> None:
    torch.manual_seed(0)
    model, twin = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    unused = torch.nn.Parameter(torch.ones(2))
    twin.load_state_dict(model.state_dict())
    flat = FlatGradients([*model.parameters(), unused], beside=2)
    x = torch.randn(5, 3)
    for _ in range(2):  # a second step must not see the first one's
        flat.clear()
        for part in x.split(2):
            (model(part) ** 2).sum().backward()
    (twin(x) ** 2).sum().backward()
    norm = flat.clip_(0.5)
    expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
    torch.testing.assert_close(norm, expected)
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    assert unused.grad is not None
    assert not unused.grad.any()
    assert flat.beside.tolist() == [0.0, 0.0]
