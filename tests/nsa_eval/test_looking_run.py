"""Runs with looks: what they leave, what they don't touch, and how they go on."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import nsa_eval
import nsa_eval.runner
from nsa_eval._counting import CountingStore
from nsa_eval._looking import _Candidate, _with_pictures
from nsa_eval.errors import UserError
from nsa_eval.looks import Look, read_looks
from nsa_eval.progress import Progress
from nsa_models import NSADecoderConfig, NSADecoderForCausalLM


@pytest.fixture(autouse=True)
def light_report(monkeypatch):
    monkeypatch.setattr(
        "nsa_eval.report.render_report", lambda directory, *, out, **_: Path(out).write_text("x")
    )


@pytest.fixture(scope="module")
def sparse_checkpoint(tmp_path_factory, tiny_checkpoints):
    """A random decoder with NSA, with the tokenizer of the dense ones."""
    folder = tmp_path_factory.mktemp("sparse") / "sparse"
    shutil.copytree(tiny_checkpoints[0], folder)
    (folder / "model.safetensors").unlink()
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = NSADecoderConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        nsa_block=8,
        nsa_stride=4,
        nsa_select_block=8,
        nsa_select_count=6,
        nsa_window=16,
        nsa_compression_hidden=8,
    )
    NSADecoderForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def config(sparse_checkpoint, tiny_checkpoints):
    def build(looks=2, **changes):
        return {
            "name": "looking",
            "models": [
                {"name": "sparse", "path": str(sparse_checkpoint)},
                {"name": "dense", "path": str(tiny_checkpoints[0])},
            ],
            "tasks": [
                {"task": "needle_single", "lengths": [256, 320], "depths": 2, "samples": 2, "new_tokens": 8},
                {"task": "needle_multikey_nll", "lengths": [320], "depths": 1, "samples": 1, "num_keys": 2},
            ],
            "report": {"looks": looks},
            "engine": {"batch_size": 1},
            "compare": {"resamples": 200},
            **changes,
        }

    return build


@pytest.fixture
def computed(monkeypatch):
    """The keys of every response that is computed."""
    keys = []
    put_many = CountingStore.put_many

    def counted(self, responses):
        put_many(self, responses)
        keys.extend(responses)

    monkeypatch.setattr(CountingStore, "put_many", counted)
    return keys


def run(config, output, **more):
    return nsa_eval.run(config, output=output, progress=False, **more)


def stored(output):
    lines = (output / "store" / "responses.jsonl").read_text().splitlines()
    return {record["key"]: record["response"] for line in lines for record in json.loads(line)}


def results(output, model):
    [file] = (output / model).glob("results_*.json")
    return json.loads(file.read_text())["results"]


@pytest.fixture(scope="module")
def once(config, tmp_path_factory):
    """A finished run with looks, for all tests."""
    output = tmp_path_factory.mktemp("once") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "nsa_eval.report.render_report", lambda directory, *, out, **_: Path(out).write_text("x")
        )
        run(config(), output)
    return output


@pytest.fixture
def finished(once, tmp_path):
    """A copy of it, to be changed."""
    return Path(shutil.copytree(once, tmp_path / "finished"))


def test_looks_are_counted_apart_and_the_runs_own_total_is_known_from_the_start(config, tmp_path):
    class Watched(Progress):
        seen: list

        def draw(self, *, now=False):
            self.seen = [*getattr(self, "seen", []), (self.noun, self.requests, self.requests_total)]

    progress = Watched()
    nsa_eval.run(config(), output=tmp_path / "run", progress=progress)
    own = [total for noun, _, total in progress.seen if noun == "request"]
    assert set(own) == {2 * (8 + 1)}
    assert [done for noun, done, _ in progress.seen if noun == "request"][-1] == own[-1]
    looks = [(done, total) for noun, done, total in progress.seen if noun == "look"]
    assert (looks[0], looks[-1]) == ((0, 9), (9, 9))


def test_a_model_with_nsa_gets_looks_and_a_dense_one_the_reason(finished):
    sheet = read_looks(finished / "sparse" / "looks.json")
    assert (sheet.per_cell, sheet.why_not) == (2, "")
    assert {task: len(found) for task, found in sheet.tasks.items()} == {
        "needle_single": 8,
        "needle_multikey_nll": 1,
    }
    assert all(isinstance(look, Look) for found in sheet.tasks.values() for look in found.values())
    assert sheet.seconds > 0
    dense = read_looks(finished / "dense" / "looks.json")
    assert (dense.tasks, dense.why_not) == ({}, "its attention reads every key")


def test_an_answers_tokens_are_found_inside_of_its_needle(finished):
    [file] = (finished / "sparse").glob("samples_needle_single_*.jsonl")
    looks = read_looks(finished / "sparse" / "looks.json").of("needle_single")
    for line in file.read_text().splitlines():
        row = json.loads(line)
        look = looks[str(row["doc_id"])]
        first, last = row["doc"]["needle_span"]
        assert look.prompt_tokens == row["doc"]["prompt_tokens"]
        assert first <= look.answers[0].first <= look.answers[0].last < last


def test_each_length_has_pictures_of_a_right_and_a_wrong_answer_at_most(finished):
    looks = read_looks(finished / "sparse" / "looks.json").of("needle_single")
    drawn = [document for document, look in looks.items() if look.picture is not None]
    # All are wrong: of documents 0 to 3 (256 tokens) and 4 to 7 (320), the first.
    assert drawn == ["0", "4"]


def test_pictures_are_of_the_answers_deepest_inside():
    def made(document, length, depth, right, *, cut=False):
        return _Candidate(task="t", document=document, cell=(length, depth), right=right, cut=cut)

    found = _with_pictures(
        [
            made(0, 256, 0.0, True),
            made(1, 256, 25.0, True),
            made(2, 256, 50.0, False, cut=True),
            made(3, 256, 75.0, False),
            made(4, 512, 50.0, None),
            made(5, 512, 50.0, False),
        ]
    )
    assert [one.document for one in found if one.picture] == [1, 3, 4]


def test_scores_costs_and_keys_are_those_of_a_run_without(finished, config, tmp_path):
    plain = tmp_path / "plain"
    run(config(looks=0), plain)
    assert not (plain / "sparse" / "looks.json").exists()
    with_looks, without = stored(finished), stored(plain)
    assert without.items() <= with_looks.items()
    assert len(with_looks) - len(without) == 9
    for model in ("sparse", "dense"):
        assert results(finished, model) == results(plain, model)
        costs = [json.loads((home / model / "costs.json").read_text())["tasks"] for home in (finished, plain)]
        assert [{task: cost["responses"] for task, cost in one.items()} for one in costs] == [
            {"needle_single": 8, "needle_multikey_nll": 1}
        ] * 2


def test_a_finished_run_started_again_looks_at_nothing(finished, config, computed, monkeypatch):
    before = (finished / "sparse" / "looks.json").read_bytes()
    monkeypatch.setattr("nsa_models.load_model", lambda *a, **k: pytest.fail("loaded a model"))
    run(config(), finished)
    run(config(looks=1), finished)  # has more already
    assert computed == []
    assert (finished / "sparse" / "looks.json").read_bytes() == before


def test_looks_are_added_to_a_finished_run_and_answers_are_not_asked_again(
    config, tmp_path, computed, finished
):
    output = tmp_path / "later"
    run(config(looks=0), output)
    del computed[:]
    run(config(looks=2), output)
    assert len(computed) == 9
    one, other = (read_looks(home / "sparse" / "looks.json") for home in (output, finished))
    assert one.tasks == other.tasks


def test_more_looks_take_up_those_that_are_there(config, tmp_path, computed):
    output = tmp_path / "run"
    run(config(looks=1), output)
    assert len(read_looks(output / "sparse" / "looks.json").of("needle_single")) == 4
    del computed[:]
    run(config(looks=2), output)
    assert len(computed) == 4
    assert len(read_looks(output / "sparse" / "looks.json").of("needle_single")) == 8


def test_a_run_that_was_stopped_while_looking_goes_on_with_the_rest(
    config, tmp_path, computed, monkeypatch, finished
):
    output = tmp_path / "stopped"
    put_many = CountingStore.put_many
    left = [9 + 3]  # the answers of the sparse model, and three of its looks

    def stopping(self, responses):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        put_many(self, responses)

    with monkeypatch.context() as patch:
        patch.setattr(CountingStore, "put_many", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(config(), output)
    assert not (output / "sparse" / "looks.json").exists()
    assert (output / "sparse").is_dir()
    del computed[:]
    run(config(), output)
    assert len(computed) == 9 + 6  # the dense model's answers, and the other looks
    one, other = (read_looks(home / "sparse" / "looks.json") for home in (output, finished))
    assert one.tasks == other.tasks


def test_cut_prompts_are_not_looked_at(config, tmp_path):
    tasks = [{"task": "needle_single", "lengths": [320], "depths": 1, "samples": 2, "new_tokens": 8}]
    settings = config(tasks=tasks, engine={"batch_size": 1, "truncation": "middle"})
    settings["models"] = [{**settings["models"][0], "max_length": 300}]
    run(settings, tmp_path / "run")
    sheet = read_looks(tmp_path / "run" / "sparse" / "looks.json")
    assert sheet.left_out("needle_single") == {"0": "its prompt was cut", "1": "its prompt was cut"}


def test_another_name_of_a_task_changes_nothing(config, tmp_path):
    task = {
        "task": "needle_single",
        "alias": "hidden",
        "lengths": [256],
        "depths": 1,
        "samples": 1,
        "new_tokens": 8,
    }
    settings = config(tasks=[task])
    settings["models"] = settings["models"][:1]
    run(settings, tmp_path / "run")
    assert list(read_looks(tmp_path / "run" / "sparse" / "looks.json").tasks) == ["hidden"]


def test_overwriting_results_forgets_looks(finished, config):
    changed = config(seed=5, looks=0)
    changed["models"] = changed["models"][1:]
    run(changed, finished, overwrite=True)
    assert not (finished / "sparse").exists()
    assert not (finished / "dense" / "looks.json").exists()


def test_damaged_looks_are_named_with_what_to_do(finished, config):
    (finished / "sparse" / "looks.json").write_text("{")
    with pytest.raises(UserError, match=r"looks\.json: damaged.*Remove it and run again"):
        run(config(), finished)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["needle", "--looks", "-m", "x"], ["needle", "--looks", "2", "-m", "x"]),
        (["needle", "-m", "x", "--looks"], ["needle", "-m", "x", "--looks", "2"]),
        (["needle", "--looks", "7"], ["needle", "--looks", "7"]),
        (["run", "--looks", "my.yaml"], ["run", "--looks", "2", "my.yaml"]),
        (["eval", "--tasks", "a", "b", "--looks"], ["eval", "--tasks", "a,b", "--looks", "2"]),
        (["needle", "--looks=5"], ["needle", "--looks=5"]),
    ],
)
def test_the_flag_goes_with_or_without_a_number(given, read):
    from nsa_eval.cli._main import as_lm_eval

    assert as_lm_eval(given) == read
