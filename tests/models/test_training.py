"""The trainer: it learns, stops and goes on without a trace, keeps its curriculum, and exports what loads."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from nsa_models import NSADecoderForCausalLM, load_model, load_tokenizer
from nsa_models.train import loop
from nsa_models.train.__main__ import command_line, main
from nsa_models.train.corpus import load_corpus
from nsa_models.train.facts import FactWriter
from nsa_models.train.learner import Learner
from nsa_models.train.loop import Stopped, train
from nsa_models.train.parallel import Group
from nsa_models.train.reading import load_recipe
from nsa_models.train.recipe import Recipe

Plain = dict[str, Any]


@pytest.fixture(autouse=True)
def short_quizzes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_QUIZ_ROWS", 4)


def run(recipe: Plain, **options: Any) -> Path:
    return train(Recipe.model_validate(recipe), log=lambda _: None, **options)


def rows(recipe: Plain) -> list[Plain]:
    """The log without the fields that differ between two equal runs."""
    lines = (Path(recipe["output"]) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    times = ("seconds", "tokens_per_second")
    return [{key: value for key, value in json.loads(line).items() if key not in times} for line in lines]


def weights(recipe: Plain) -> dict[str, Tensor]:
    return dict(torch.load(Path(recipe["output"]) / "state.pt", weights_only=True)["model"])


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def elsewhere(recipe: Plain, folder: str, **changes: Any) -> Plain:
    return {**recipe, "output": str(Path(recipe["output"]).parent / folder), **changes}


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_the_loss_falls_and_the_log_tells(recipe: Plain, attention: str) -> None:
    recipe["model"]["attention"] = attention
    recipe["test_every"] = 10
    run(recipe)
    log = rows(recipe)
    assert [row["step"] for row in log] == list(range(1, 16))
    assert [row["stage"] for row in log] == [0] * 10 + [1] * 5
    assert [row["length"] for row in log] == [256] * 10 + [512, 256, 512, 256, 512]
    assert log[-1]["tokens"] == 15 * 512
    assert log[0]["loss"] > 5.5  # about ln 400: nothing is known yet
    assert log[9]["loss"] < log[0]["loss"] - 0.7
    assert [row["step"] for row in log if "held_out" in row] == [10, 15]
    assert all(0.0 <= row["held_out"]["256"] <= 1.0 for row in log if "held_out" in row)


def test_the_rate_warms_up_and_decays_in_the_last_stage(recipe: Plain) -> None:
    recipe["optim"] = {"lr": 1e-3, "warmup_steps": 4, "final_lr_ratio": 0.2}
    run(recipe)
    rates = [row["lr"] for row in rows(recipe)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4:10] == pytest.approx([1e-3] * 6)
    assert rates[10:] == pytest.approx([1e-3 * (1 - 0.8 * done / 5) for done in range(5)])


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_a_run_stopped_again_and_again_ends_as_an_undisturbed_one(recipe: Plain, attention: str) -> None:
    recipe["model"]["attention"] = attention
    run(recipe)
    other = elsewhere(recipe, "stopped")
    for _ in range(13):  # after each step but the last of the two stages
        with pytest.raises(Stopped, match="run again to go on"):
            run(other, minutes=0.0)
    model = run(other, minutes=0.0)
    assert rows(other) == rows(recipe)
    assert same(weights(other), weights(recipe))
    first, second = (Path(each["output"]) / "model" / "model.safetensors" for each in (recipe, other))
    assert model == second.parent
    assert first.read_bytes() == second.read_bytes()


class Killed(BaseException):
    """Stands for kill -9: nothing of the run's own may tidy up after it."""


def test_a_run_killed_between_two_saves_logs_no_step_twice(
    recipe: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe)
    other = elsewhere(recipe, "killed", save_every=4)
    batch = FactWriter.batch

    def deadly(self: FactWriter, **which: int) -> tuple[Tensor, Tensor]:
        if which["step"] == 6:
            raise Killed
        return batch(self, **which)

    monkeypatch.setattr(FactWriter, "batch", deadly)
    with pytest.raises(Killed):
        run(other)
    monkeypatch.undo()
    log = Path(other["output"]) / "log.jsonl"
    assert [row["step"] for row in rows(other)] == [1, 2, 3, 4, 5, 6]
    with log.open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "lo')  # and the kill came in the middle of a row
    run(other)
    assert rows(other) == rows(recipe)
    assert same(weights(other), weights(recipe))


def test_a_run_killed_before_its_first_save_starts_anew(recipe: Plain) -> None:
    log = Path(recipe["output"]) / "log.jsonl"
    log.parent.mkdir()
    log.write_text('{"step": 1}\n{"step": 2}\n', encoding="utf-8")
    run(recipe)
    assert [row["step"] for row in rows(recipe)] == list(range(1, 16))


def test_a_finished_run_only_exports_again(recipe: Plain) -> None:
    model = run(recipe)
    before, log = weights(recipe), rows(recipe)
    (model / "model.safetensors").unlink()
    run(recipe)
    assert (model / "model.safetensors").is_file()
    assert same(weights(recipe), before)
    assert rows(recipe) == log


def batches(recipe: Plain, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hashes of the batches that a run's steps see."""
    seen: list[str] = []
    losses = Learner.losses

    def watched(self: Any, ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(sha256(ids.numpy().tobytes() + answers.numpy().tobytes()).hexdigest())
        return losses(self, ids, answers)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "losses", watched)
        run(recipe)
    return seen


def test_both_twins_see_the_same_data_in_the_same_order(
    recipe: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe["batch_tokens"] = 1024
    nsa = batches(recipe, monkeypatch)
    full = elsewhere(recipe, "full", name="full", model={**recipe["model"], "attention": "full"})
    assert batches(full, monkeypatch) == nsa
    assert len(set(nsa)) == len(nsa) == 30  # two micro-batches a step, none twice
    reseeded = elsewhere(recipe, "reseeded", seed=1)
    assert not set(batches(reseeded, monkeypatch)) & set(nsa)


def test_workers_change_nothing(recipe: Plain) -> None:
    run(recipe)
    other = elsewhere(recipe, "workers", workers=2)
    run(other)
    assert rows(other) == rows(recipe)
    assert same(weights(other), weights(recipe))


def test_micro_batches_change_the_rounding_alone(recipe: Plain) -> None:
    recipe["batch_tokens"] = 1024
    run(recipe)
    other = elsewhere(recipe, "whole", micro_batch_tokens=1024)
    run(other)
    losses, again = ([row["loss"] for row in rows(each)] for each in (recipe, other))
    assert again == pytest.approx(losses, rel=1e-4)


def test_a_stage_ends_when_the_answers_are_known(recipe: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_MIN_STEPS", 3)
    easy, hard = 100.0, 1e-9
    recipe["stages"] = [
        {"lengths": [256], "until_answer_loss": easy, "max_steps": 9},
        {"lengths": [256], "until_answer_loss": hard, "max_steps": 5},
        {"lengths": [512], "max_steps": 2},
    ]
    run(recipe)
    assert [row["stage"] for row in rows(recipe)] == [0] * 3 + [1] * 5 + [2] * 2
    running = [row["answer_loss_mean"] for row in rows(recipe)]
    exact = [row["answer_loss"] for row in rows(recipe)]
    assert [running[0], running[3]] == [exact[0], exact[3]]  # each stage begins its mean anew
    assert running[1] == pytest.approx(0.95 * exact[0] + 0.05 * exact[1])


def test_a_stage_does_not_end_before_its_least_steps(recipe: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_MIN_STEPS", 3)
    easy = {"lengths": [256], "until_answer_loss": 100.0, "max_steps": 9}
    recipe["stages"] = [
        {**easy, "min_steps": 6},
        {**easy, "min_steps": 1},
        {"lengths": [256], "max_steps": 1},
    ]
    run(recipe)
    assert [row["stage"] for row in rows(recipe)] == [0] * 6 + [1] * 3 + [2]


@pytest.mark.parametrize("micro", [512, 64])
def test_a_question_is_right_when_every_answer_token_is_the_likeliest(recipe: Plain, micro: int) -> None:
    made = Recipe.model_validate({**recipe, "micro_batch_tokens": 512})
    learner = Learner(made.model_copy(update={"micro_batch_tokens": micro}), load_corpus(made.text), Group())
    ids = torch.randint(5, 400, (4, 64), generator=torch.Generator().manual_seed(0))
    answers = torch.zeros(4, 64, dtype=torch.bool)
    answers[:, 20:24] = answers[:, 60:63] = True
    with torch.no_grad():
        for column in range(1, 64):  # rows 0, 1 and 3 say what the model would
            said = learner.model(ids[:, :column]).logits[:, -1].argmax(-1)
            ids[[0, 1, 3], column] = said[[0, 1, 3]]
    ids[1, 62] += 1  # the last answer token, which nothing follows
    ids[3, 30] += 1  # no answer; what the model says afterwards may change, the first answer doesn't
    answers[3, 60:63] = False
    assert learner.right(ids, answers) == 2
    assert learner.model.training


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"seed": 5}, "seed"),
        ({"optim": {"lr": 1.0}}, "optim"),
        ({"stages": [{"lengths": [256], "max_steps": 3}]}, "stages"),
    ],
)
def test_another_recipe_in_the_same_folder_is_refused(recipe: Plain, changes: Plain, differs: str) -> None:
    with pytest.raises(Stopped):
        run(recipe, minutes=0.0)
    before = weights(recipe)
    said = rf"holds a run of another recipe \(differs in {differs}\); choose another"
    with pytest.raises(ValueError, match=said):
        run({**recipe, **changes})
    assert same(weights(recipe), before)
    run({**recipe, "log_every": 3, "save_every": 2, "test_every": 7})  # these may change on the way


def test_stages_to_come_may_change_on_the_way(recipe: Plain) -> None:
    with pytest.raises(Stopped):
        run(recipe, minutes=0.0)
    longer = {**recipe, "stages": [recipe["stages"][0], {"lengths": [512], "max_steps": 2}]}
    run(longer)
    assert [row["length"] for row in rows(recipe)] == [256] * 10 + [512] * 2
    with pytest.raises(ValueError, match=r"differs in stages"):  # both are in the past by now
        run(recipe)


def test_a_stage_that_becomes_the_last_one_is_another_recipe(recipe: Plain) -> None:
    with pytest.raises(Stopped):
        run(recipe, minutes=0.0)
    with pytest.raises(ValueError, match=r"differs in stages"):  # its rate would decay
        run({**recipe, "stages": recipe["stages"][:1]})


def test_a_stopped_run_leaves_its_weights_as_a_checkpoint_too(recipe: Plain) -> None:
    with pytest.raises(Stopped):
        run(recipe, minutes=0.0)
    model = load_model(str(Path(recipe["output"]) / "model"), device="cpu")
    rounded = {name: weight.bfloat16().float() for name, weight in weights(recipe).items()}
    assert same(model.state_dict(), rounded)


def test_a_moved_text_is_the_same_recipe(recipe: Plain, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(recipe, minutes=0.0)
    (tmp_path / "moved").symlink_to(recipe["text"]["cache"])
    run({**recipe, "text": {**recipe["text"], "cache": str(tmp_path / "moved"), "folder": "gone"}})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_everything_saved(recipe: Plain, number: signal.Signals) -> None:
    run(recipe)
    other = elsewhere(recipe, "signalled")
    handlers = [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)]

    def kill_at_step_4(line: str) -> None:
        if line.startswith("step 4 "):
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match="stopped at step 4"):
        train(Recipe.model_validate(other), log=kill_at_step_4)
    assert [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)] == handlers
    run(other)
    assert rows(other) == rows(recipe)
    assert same(weights(other), weights(recipe))


def test_a_second_ctrl_c_stops_at_once(recipe: Plain) -> None:
    def press_twice(_: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(Recipe.model_validate(recipe), log=press_twice)


def test_a_run_in_a_thread_leaves_signals_alone(recipe: Plain) -> None:
    made: list[Path] = []
    thread = threading.Thread(target=lambda: made.append(run(recipe)))
    thread.start()
    thread.join()
    assert [folder.name for folder in made] == ["model"]


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_the_exported_model_is_the_trained_one_in_bf16(recipe: Plain, attention: str) -> None:
    recipe["model"]["attention"] = attention
    folder = run(recipe)
    assert folder == Path(recipe["output"]) / "model"
    saved = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    assert not list(folder.glob("*.bin")) + list(folder.glob("*.pt"))
    model, tokenizer = load_model(str(folder), device="cpu"), load_tokenizer(str(folder))
    assert isinstance(model, NSADecoderForCausalLM)
    assert model.config.attention == attention
    assert model.config.vocab_size == len(tokenizer) == 400
    assert model.config.bos_token_id == tokenizer.bos_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    rounded = {name: weight.bfloat16().float() for name, weight in weights(recipe).items()}
    assert same(model.state_dict(), rounded)


def test_a_stage_may_select_fewer_blocks_than_the_model(
    recipe: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe["stages"][0]["select_count"] = 3
    counts: list[int] = []
    losses = Learner.losses

    def watched(self: Any, ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        counts.append(self.model.model.layers[0].self_attn.config.nsa_select_count)
        return losses(self, ids, answers)

    monkeypatch.setattr(Learner, "losses", watched)
    folder = run(recipe)
    assert counts == [3] * 10 + [4] * 5
    assert json.loads((folder / "config.json").read_text())["nsa_select_count"] == 4
    other = elsewhere(recipe, "same-n", stages=[{**stage, "select_count": 3} for stage in recipe["stages"]])
    assert json.loads((run(other) / "config.json").read_text())["nsa_select_count"] == 4
    assert rows(other)[9] == rows(recipe)[9]
    assert rows(other)[-1]["loss"] != rows(recipe)[-1]["loss"]


# --- weights to begin with ---


def begun(recipe: Plain, folder: Path) -> dict[str, Tensor]:
    """Weights of a model that begins with those of `folder`."""
    made = Recipe.model_validate({**recipe, "init_from": str(folder)})
    return Learner(made, load_corpus(made.text), Group()).model.state_dict()


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_a_run_begins_with_a_checkpoints_weights(recipe: Plain, attention: str) -> None:
    recipe["model"]["attention"] = attention
    folder = run(recipe)
    given = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
    own = begun(recipe, folder)
    assert all(torch.equal(own[name], weight) for name, weight in given.items())


@pytest.mark.parametrize("share_kv", [False, True])
def test_an_nsa_model_begins_with_its_dense_twins_weights(recipe: Plain, share_kv: bool) -> None:
    recipe["model"]["num_key_value_heads"] = 2
    dense = run(elsewhere(recipe, "dense", model={**recipe["model"], "attention": "full"}))
    given = {name: weight.float() for name, weight in load_file(dense / "model.safetensors").items()}
    own = begun({**recipe, "model": {**recipe["model"], "nsa_share_kv": share_kv}}, dense)
    layer, sets = "model.layers.0.self_attn.", 1 if share_kv else 3
    for which in ("k_proj", "v_proj"):
        branches = own[f"{layer}{which}.weight"].chunk(sets)
        assert all(torch.equal(branch, given[f"{layer}{which}.weight"]) for branch in branches)
    for i in range(sets):
        assert torch.equal(own[f"{layer}k_norms.{i}.weight"], given[f"{layer}k_norm.weight"])
    shared = given.keys() & own.keys() - {f"{layer}k_proj.weight", f"{layer}v_proj.weight"}
    assert {f"{layer}q_proj.weight", "model.embed_tokens.weight", "model.norm.weight"} <= shared
    assert all(torch.equal(own[name], given[name]) for name in shared)
    run({**recipe, "init_from": str(dense)})
    assert rows(recipe)[0]["loss"] < 5.5  # it knows something already, see the test of the falling loss


def test_weights_of_another_shape_are_refused(recipe: Plain, tmp_path: Path) -> None:
    folder = run(recipe)
    other = elsewhere(recipe, "wider", model={**recipe["model"], "intermediate_size": 64})
    with pytest.raises(ValueError, match=r"init_from: .* has another shape than the recipe's model"):
        run({**other, "init_from": str(folder)})
    with pytest.raises(ValueError, match=r"init_from: .* can't be loaded"):
        run({**other, "init_from": str(tmp_path / "nothing")})


def test_a_text_too_short_is_told_before_any_step(recipe: Plain) -> None:
    recipe["test_lengths"] = [256, 65_536]
    said = r"the held-out text has \d+ tokens, the recipe asks for sequences of 65536"
    with pytest.raises(ValueError, match=said):
        run(recipe)
    recipe["test_lengths"] = [256, 64]
    with pytest.raises(ValueError, match="64 tokens are too few for a fact and its question"):
        run(recipe)
    assert not Path(recipe["output"]).exists()


def test_a_loss_that_is_not_a_number_ends_the_run(recipe: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = Learner.losses

    calls = iter(range(20))

    def broken(self: Any, ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        text, answer, ranking = losses(self, ids, answers)
        return text * (float("nan") if next(calls) == 3 else 1.0), answer, ranking

    monkeypatch.setattr(Learner, "losses", broken)
    with pytest.raises(ValueError, match=r"step 3: the loss is nan .*: lower optim.lr"):
        run({**recipe, "save_every": 1})
    assert all(torch.isfinite(weight).all() for weight in weights(recipe).values())


# --- command line ---


def write(recipe: Plain, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


def test_the_command_line_stops_goes_on_and_ends(
    recipe: Plain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(recipe, tmp_path)
    assert main([path, "--minutes", "0"]) == 3
    assert "stopped at step 1 with everything saved" in capsys.readouterr().out
    assert main([path]) == 0
    out = capsys.readouterr().out
    assert "going on from step 1" in out
    assert out.splitlines()[-1] == f"model in {Path(recipe['output']) / 'model'}"


def test_the_text_alone_can_be_prepared(
    recipe: Plain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "prepared"
    assert main([write(recipe, tmp_path), "--prepare", "--set", f"text.cache={cache}"]) == 0
    assert re.fullmatch(
        rf"[\d,]+ tokens for training and [\d,]+ held out in {cache}\n", capsys.readouterr().out
    )
    assert (cache / "tokens.bin").is_file()
    assert not Path(recipe["output"]).exists()


def test_speed_is_measured_at_each_length_and_nothing_written(
    recipe: Plain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["stages"][0]["select_count"] = 3
    assert main([write(recipe, tmp_path), "--measure", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "length 256 n 3",
        "length 512 n 4",
        "length 256 n 4",
        "micro",
    ]
    assert all("k tokens/s" in line for line in lines[:3])
    assert "at the most 15 steps, 0M tokens" in lines[-1]
    assert not Path(recipe["output"]).exists()


def test_the_commands_of_the_page_are_taken() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "training.md").read_text(encoding="utf-8")
    found = re.findall(r"-m nsa_models\.train (\S+\.yaml[^\n&;]*)", page)
    assert len(found) >= 6
    for line in found:
        words = [word for word in shlex.split(line.replace("$kind", "nsa")) if word != "\\"]
        args = command_line().parse_args(words)
        assert args.recipe == Path("mine.yaml") or (root / args.recipe).is_file()
        load_recipe(root / "models/nsa_models/recipes/twin-nsa-64k.yaml", args.changes)


def test_the_log_tells_tokens_a_second(recipe: Plain) -> None:
    run(recipe)
    path = Path(recipe["output"]) / "log.jsonl"
    speeds = [json.loads(line)["tokens_per_second"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(512 / 60 < speed < 512 / 1e-5 for speed in speeds)


@pytest.mark.parametrize(
    ("hurt", "said"),
    [
        (lambda r: r.update(bach_tokens=1), "bach_tokens: unknown key; did you mean 'batch_tokens'?"),
        (lambda r: r["text"].update(cache="/nowhere/cache", folder="/nowhere"), "text in /nowhere, and no"),
        (lambda r: r.update(output="/dev/null/run"), "/dev/null"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    recipe: Plain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    hurt: Callable[[Plain], object],
    said: str,
) -> None:
    hurt(recipe)
    assert main([write(recipe, tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1


def test_ctrl_c_before_the_first_step_is_no_traceback(
    recipe: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "load_corpus", interrupted)
    assert main([write(recipe, tmp_path)]) == 130
    assert capsys.readouterr().err == "stopped at once; the state saved last is kept\n"
