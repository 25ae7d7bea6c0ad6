"""A series of runs: strict keys, shared by processes, goes on where it stopped, one file of results."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import training_series
import yaml
from filelock import FileLock

from nsa_models.train import corpus as corpus_module
from nsa_models.train import held_out, loop
from nsa_models.train.corpus import load_corpus
from nsa_models.train.held_out import HeldOutTest
from nsa_models.train.learner import Learner, Learnt
from nsa_models.train.loop import Stopped
from nsa_models.train.parallel import Group
from nsa_models.train.reading import load_recipe
from nsa_models.train.recipe import Recipe, TextRecipe
from nsa_models.train.series import load_series, train_series
from nsa_models.train.series.__main__ import command_line, main
from nsa_settings import SettingsError

Plain = dict[str, Any]
HOME = Path(__file__).resolve().parents[2]
BUNDLED = HOME / "models" / "nsa_models" / "recipes" / "series"
RUNS: Plain = {
    "nsa-32": {},
    "full-32": {"model.attention": "full"},
    "nsa-16": {"model.hidden_size": 16},
    "full-16": {"model.attention": "full", "model.hidden_size": 16},
}


@pytest.fixture(autouse=True)
def short_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_QUIZ_ROWS", 2)
    monkeypatch.setattr(held_out, "LOSS_TOKENS", 1024)
    monkeypatch.setattr(held_out, "QUESTIONS", 4)


@pytest.fixture
def written(recipe: Plain, tmp_path: Path) -> Path:
    """A series of four runs of six steps, with its base in a folder beside it."""
    recipe["model"].update(num_attention_heads=2, num_key_value_heads=1)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (tmp_path / "series").mkdir()
    return write(tmp_path / "series" / "tiny.yaml")


def write(path: Path, **changes: Any) -> Path:
    series = {
        "name": "tiny",
        "output": str(path.parent / "out"),
        "base": "../base.yaml",
        "set": {"stages": [{"lengths": [256], "max_steps": 6}], "log_every": 2},
        "runs": RUNS,
        **changes,
    }
    path.write_text(yaml.safe_dump(series, sort_keys=False), encoding="utf-8")
    return path


def results(path: Path) -> Plain:
    held: Plain = json.loads((path.parent / "out" / "tiny.json").read_text(encoding="utf-8"))
    return held


def without_times(run: Plain) -> Plain:
    return {key: value for key, value in run.items() if key not in ("seconds", "tokens_per_second", "recipe")}


def test_every_run_is_the_base_with_the_series_changes_and_its_own(written: Path) -> None:
    series = load_series(written, ["stages.0.max_steps=3", "seed=4"])
    assert list(series.recipes) == list(RUNS)
    base = load_recipe(written.parent.parent / "base.yaml")
    for name, recipe in series.recipes.items():
        assert (recipe.name, recipe.output) == (f"tiny-{name}", written.parent / "out" / name)
        assert [stage.max_steps for stage in recipe.stages] == [3]
        assert (recipe.log_every, recipe.seed) == (2, 4)
        assert recipe.model == {
            **base.model,
            **{key.removeprefix("model."): value for key, value in RUNS[name].items()},
        }
    assert load_series(written, output=Path("elsewhere")).recipes["nsa-32"].output == Path("elsewhere/nsa-32")


def test_what_a_run_changes_is_its_own(written: Path) -> None:
    runs = {"a": {"ranking.weight": 0.1}, "b": {}}
    recipes = load_series(write(written, set={"ranking": {"weight": 0.7}}, runs=runs)).recipes
    weights = {name: recipe.ranking and recipe.ranking.weight for name, recipe in recipes.items()}
    assert weights == {"a": 0.1, "b": 0.7}


@pytest.mark.parametrize("text", ["", "- 1", "words"])
def test_a_base_that_is_no_recipe_is_told(
    written: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (written.parent.parent / "base.yaml").write_text(text)
    assert main([str(write(written, set={}))]) == 2
    assert "base.yaml: expected a recipe's keys and values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rnus": {}}, "tiny.yaml:19: rnus: unknown key; did you mean 'runs'?"),
        ({"runs": {}}, "tiny.yaml:10: runs: the mapping is empty: name at least one run"),
        ({"runs": {"../up": {}}}, "tiny.yaml:11: runs.../up: expected letters, digits"),
        (
            {"runs": {"a": {"bach_tokens": 1}}},
            "tiny.yaml:12: runs.a: bach_tokens: unknown key; did you mean 'batch_tokens'?",
        ),
        (
            {"runs": {"a": {"model.hiden_size": 1}}},
            "tiny.yaml:12: runs.a: model.hiden_size: unknown key; did you mean 'hidden_size'?",
        ),
        (
            {"runs": {"a": {"optimizr.lr": 1.0}}},
            "tiny.yaml:12: runs.a: optimizr: unknown key; did you mean 'optim'?",
        ),
        (
            {"runs": {"a": {"stages.3.max_steps": 1}}},
            "tiny.yaml:12: runs.a: stages has entry 0 alone; there is no 3",
        ),
        ({"runs": {"a": {"output": "x"}}}, "runs.a: output of a run follows from the series"),
        (
            {"set": {"ranking.weigth": 1.0}},
            "tiny.yaml:5: set: ranking.weigth: unknown key; did you mean 'weight'?",
        ),
        ({"set": {"name": "x"}}, "tiny.yaml:5: set: name of a run follows from the series"),
        ({"base": "gone.yaml"}, "gone.yaml: cannot be read: no such file (it is named relative to"),
    ],
)
def test_a_wrong_key_is_told_before_anything_is_trained(
    written: Path, capsys: pytest.CaptureFixture[str], changes: Plain, said: str
) -> None:
    assert main([str(write(written, **changes))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1, "what all runs share is told once"
    assert not (written.parent / "out").exists()


def test_a_mistake_in_the_base_is_told_once_by_its_own_file(
    written: Path, recipe: Plain, capsys: pytest.CaptureFixture[str]
) -> None:
    base = written.parent.parent / "base.yaml"
    recipe["optim"]["warmup_step"] = 5
    base.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    number = next(i for i, line in enumerate(base.read_text().splitlines(), 1) if "warmup_step:" in line)
    assert main([str(written)]) == 2
    told = "optim.warmup_step: unknown key; did you mean 'warmup_steps'?"
    assert capsys.readouterr().err == f"error: {written.parent}/../base.yaml:{number}: {told}\n"


def test_a_series_stopped_again_and_again_ends_as_an_undisturbed_one(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {name: RUNS[name] for name in ("full-16", "nsa-16")}
    write(written, runs=two)
    assert main([str(written)]) == 0
    undisturbed = results(written)
    assert undisturbed["missing"] == []
    assert list(undisturbed["runs"]) == list(two)
    other = load_series(written, output=written.parent / "stopped")
    monkeypatch.setattr(loop._Run, "_must_stop", lambda self: self.progress.step == 3)
    for _ in two:
        with pytest.raises(Stopped):
            train_series(other, log=lambda _: None)
    train_series(other, log=lambda _: None)
    again = json.loads(other.file.read_text(encoding="utf-8"))
    assert {name: without_times(run) for name, run in again["runs"].items()} == {
        name: without_times(run) for name, run in undisturbed["runs"].items()
    }


@pytest.mark.parametrize(
    "line", ["step 4 ", "step 6 ", "held out at 256"]
)  # amid a run, at its end, after it
def test_a_signal_stops_the_series_and_not_the_run_alone(written: Path, line: str) -> None:
    series = load_series(written)

    def kill(said: str) -> None:
        if said.startswith(f"nsa-32: {line}"):
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="at step 4" if "4" in line else "before full-32"):
        train_series(series, only=["nsa-32", "full-32"], log=kill)
    assert signal.getsignal(signal.SIGTERM) is handler
    train_series(series, only=["nsa-32", "full-32"], log=lambda _: None)
    assert list(results(written)["runs"]) == ["nsa-32", "full-32"]


def test_the_time_is_that_of_all_runs(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(written), "--minutes", "0"]) == 3
    assert "stopped before nsa-32 with everything saved" in capsys.readouterr().out
    assert not list((written.parent / "out").glob("*/log.jsonl"))


def test_named_runs_alone_are_trained_and_done_ones_are_left(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(written), "--only", "full-32"]) == 0
    assert results(written)["missing"] == ["nsa-32", "nsa-16", "full-16"]
    made = (written.parent / "out" / "full-32" / "log.jsonl").stat()
    assert main([str(written), "--only", "full-16,full-32"]) == 0
    assert "full-32: done before" in capsys.readouterr().out
    assert (written.parent / "out" / "full-32" / "log.jsonl").stat() == made
    assert list(results(written)["runs"]) == ["full-32", "full-16"]
    with pytest.raises(SettingsError, match="no run nsa-64 in tiny; it has nsa-32, full-32"):
        train_series(load_series(written), only=["nsa-64"])
    assert main([str(written), "--list"]) == 0
    assert "full-32: 6 steps, 0.0M tokens, done" in capsys.readouterr().out


def test_a_run_in_anothers_hands_is_left_to_it(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written.parent / "out" / "nsa-32"
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        assert main([str(written), "--only", "nsa-32,full-32"]) == 0
    assert "nsa-32 in the hands of other processes" in capsys.readouterr().out
    assert list(results(written)["runs"]) == ["full-32"]


def test_processes_that_begin_together_make_the_tokenised_text_once(
    recipe: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Recipe.model_validate(recipe).text.model_copy(update={"cache": tmp_path / "cache"})
    made = []
    make = corpus_module._make

    def slowly(recipe: TextRecipe) -> None:
        made.append(recipe)
        time.sleep(0.2)
        make(recipe)

    monkeypatch.setattr(corpus_module, "_make", slowly)
    with ThreadPoolExecutor(2) as pool:  # a lock is one for threads as for processes
        one, other = pool.map(load_corpus, [text, text])
    assert len(made) == 1
    assert one.train.tolist() == other.train.tolist()


def test_a_finished_run_of_another_recipe_is_refused_before_any_is_trained(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(written), "--only", "nsa-32"]) == 0
    before = results(written)
    assert main([str(written), "--only", "full-16,nsa-32", "--set", "seed=3"]) == 2
    said = capsys.readouterr().err
    assert "nothing is trained: nsa-32: " in said
    assert "nsa-32 holds a run of another recipe (differs in seed)" in said
    assert results(written) == before
    assert main([str(written), "--only", "full-16", "--set", "seed=3"]) == 0  # without it they go on
    assert results(written)["runs"]["full-16"]["recipe"]["seed"] == 3


@pytest.mark.parametrize(
    "lack",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED, CUDA out of memory"),
    ],
)
def test_a_run_too_large_for_the_memory_keeps_no_other_from_being_trained(
    lack: Exception, written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learn = Learner.learn

    def within_memory(self: Learner, *args: Any, **kwargs: Any) -> Learnt:
        if self.config.hidden_size == 32:
            raise lack
        return learn(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "learn", within_memory)
    assert main([str(written), "--only", "full-32,full-16"]) == 2
    said = capsys.readouterr().err
    assert f"full-32: {lack}" in said
    assert "lower micro_batch_tokens" in said
    assert list(results(written)["runs"]) == ["full-16"]


def test_results_have_the_lengths_that_are_asked_for_now(written: Path) -> None:
    shorter = ["--set", "test_lengths=[300]"]
    assert main([str(written), "--only", "full-16"]) == 0
    assert main([str(written), "--only", "full-32", *shorter]) == 0
    assert results(written)["missing"] == ["nsa-32", "nsa-16", "full-16"]  # not tested there yet
    assert main([str(written), "--only", "full-16", *shorter]) == 0
    assert [list(run["held_out"]) for run in results(written)["runs"].values()] == [["300"], ["300"]]


def test_results_tell_what_the_log_and_the_model_say(written: Path) -> None:
    assert main([str(written), "--only", "nsa-32"]) == 0
    run = results(written)["runs"]["nsa-32"]
    lines = (written.parent / "out" / "nsa-32" / "log.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert run["curve"]["tokens"] == [512 * step for step in (2, 4, 6)]
    assert run["curve"]["loss"] == pytest.approx([row["loss"] for row in log], abs=1e-5)
    assert (run["steps"], run["tokens"], run["machine"]["device"]) == (6, 3072, "CPU")
    assert run["held_out"].keys() == {"256"}
    assert 4.0 < run["held_out"]["256"]["text"] < 6.0
    assert run["held_out"]["256"]["questions"] == 4


def test_held_out_figures_are_of_unseen_text_and_do_not_depend_on_pieces(recipe: Plain) -> None:
    corpus = load_corpus(Recipe.model_validate(recipe).text)
    found = []
    for micro in (512, 1024):
        made = Recipe.model_validate({**recipe, "batch_tokens": 1024, "micro_batch_tokens": micro})
        test = HeldOutTest(made, corpus)
        assert test._facts.train is corpus.held_out
        found.append(test(Learner(made, corpus, Group()), 256))
    assert found[0].text == pytest.approx(found[1].text, rel=1e-5)
    assert found[0].answer == pytest.approx(found[1].answer, rel=1e-5)
    assert found[0].right == found[1].right


def test_torchrun_is_refused(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([str(written)]) == 2
    assert "start it once for each GPU" in capsys.readouterr().err


# --- what comes with the package ---


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_series_are_valid_and_their_runs_see_the_same_data(path: Path) -> None:
    series = load_series(path)
    assert series.name == path.stem
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# python -m nsa_models.train.series models/nsa_models/recipes/series/{path.name}"
    data = [
        recipe.model_dump(include={"text", "facts", "batch_tokens", "seed", "optim", "test_lengths"})
        | {"stages": [(stage.lengths, stage.max_steps) for stage in recipe.stages]}
        for recipe in series.recipes.values()
    ]
    assert data == data[:1] * len(data)
    made = [recipe.model_dump_json(exclude={"name", "output"}) for recipe in series.recipes.values()]
    assert len(set(made)) == len(made)


def test_the_ladders_runs_are_twins_of_three_sizes() -> None:
    recipes = load_series(BUNDLED / "ladder.yaml").recipes
    runs = {name: {"recipe": recipe.model_dump(mode="json")} for name, recipe in recipes.items()}
    assert training_series.references(runs) == {f"nsa-{size}": f"full-{size}" for size in (384, 256, 128)}
    for recipe in recipes.values():
        assert recipe.model["hidden_size"] == 64 * recipe.model["num_hidden_layers"]
        assert recipe.model["num_attention_heads"] == 4 * recipe.model["num_key_value_heads"]


def test_no_ranking_loss_draws_to_keys_that_nothing_trains() -> None:
    ranked = {
        name: recipe.ranking is not None
        for name, recipe in load_series(BUNDLED / "ablations.yaml").recipes.items()
    }
    assert {name for name, has in ranked.items() if not has} == {"no-selection", "no-ranking"}


@pytest.mark.parametrize("page", ["training.md", "ladder.md"])
def test_the_commands_of_the_page_are_taken(page: str) -> None:
    text = (HOME / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r"-m nsa_models\.train\.series (\S+\.yaml[^\n&;]*)", text)
    assert found
    for line in found:
        args = command_line().parse_args([word for word in shlex.split(line) if word != "\\"])
        load_series(HOME / args.series, args.changes)
