"""A run's results file against what lm-eval's own `simple_evaluate` and tracker record."""

import json
import subprocess
import sys

import pytest

import nsa_eval
from nsa_eval._lm_eval import _git_hash
from nsa_eval._quiet import quiet

VOLATILE = {"date", "total_evaluation_time_seconds"}
OURS_TO_NAME = {"model_source", "model_name", "model_name_sanitized", "config", "configs"}
TASK = {"task": "needle_single", "lengths": [256], "depths": 2, "samples": 1, "new_tokens": 8}


@pytest.fixture(scope="module")
def written(tiny_checkpoints, tmp_path_factory):
    """The same model and task: (our results and samples, simple_evaluate's)."""
    home = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nsa_eval.report.render_report", lambda directory, *, out, **_: out.write_text(""))
        ours = nsa_eval.evaluate(
            [str(tiny_checkpoints[0])], [TASK], output=home / "ours", limit=1, progress=False
        )
    return read(ours.models[0].results_file.parent), read(by_simple_evaluate(tiny_checkpoints[0], home))


def by_simple_evaluate(checkpoint, home):
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    import nsa_models
    from nsa_eval.engine import Engine
    from nsa_tasks import task_spec

    params = {key: value for key, value in TASK.items() if key != "task"} | {"seed": 0}
    tracker = EvaluationTracker(output_path=str(home / "theirs"))
    with quiet():
        results = simple_evaluate(
            model=Engine(nsa_models.load_model(str(checkpoint)), nsa_models.load_tokenizer(str(checkpoint))),
            model_args={"pretrained": str(checkpoint)},
            tasks=[task_spec(TASK["task"], params, tokenizer=str(checkpoint))],
            task_manager=TaskManager(include_defaults=False),
            evaluation_tracker=tracker,
            limit=1,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        tracker.save_results_samples(task_name=TASK["task"], samples=samples[TASK["task"]])
    [folder] = (home / "theirs").iterdir()
    return folder


def read(folder):
    [results], [samples] = folder.glob("results_*.json"), folder.glob("samples_*.jsonl")
    return json.loads(results.read_text()), [json.loads(line) for line in samples.read_text().splitlines()]


def test_every_key_of_lm_eval_is_there(written):
    (ours, _), (theirs, _) = written
    assert set(theirs) - set(ours) == set()
    assert set(theirs["config"]) - set(ours["config"]) == set()


def test_keys_that_both_can_know_say_the_same(written):
    (ours, _), (theirs, _) = written
    for key in set(theirs) - VOLATILE - OURS_TO_NAME:
        assert ours[key] == theirs[key], key
    for key in set(theirs["config"]) - {"model_args", "batch_size", "device"}:
        assert ours["config"][key] == theirs["config"][key], key


def test_samples_are_the_same(written):
    (_, ours), (_, theirs) = written
    [row] = ours
    added = {key: row.pop(key) for key in ("new_tokens", "finished")}
    assert [len(one) for one in added.values()] == [1, 1]  # what the texts alone don't say
    assert ours == theirs


def test_a_folder_without_a_repository_is_no_complaint(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert _git_hash() is None
    assert capfd.readouterr().err == ""


def test_a_few_shot_count_that_a_task_refuses_is_noted(tiny_checkpoints, tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr("nsa_eval.report.render_report", lambda directory, *, out, **_: out.write_text(""))
    monkeypatch.setattr("nsa_eval.progress.Progress.note", lambda self, text: notes.append(text))
    (tmp_path / "rows.jsonl").write_text('{"q": "one and one is", "a": "two"}\n' * 2)
    (tmp_path / "sums.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "output_type: loglikelihood\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "num_fewshot: 0\nmetric_list: [{metric: acc}]\n"
    )
    result = nsa_eval.evaluate(
        [str(tiny_checkpoints[0])], [{"task": "sums", "num_fewshot": 3}], include_path=[str(tmp_path)],
        output=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert notes == ["one: sums: num_fewshot 3 doesn't apply: the task fixes it at 0"]
    assert result.models[0].results["n-shot"]["sums"] == 0


def test_a_chat_model_without_its_template_is_noted(tiny_checkpoints, tmp_path, monkeypatch):
    import shutil

    notes = []
    monkeypatch.setattr("nsa_eval.report.render_report", lambda directory, *, out, **_: out.write_text(""))
    monkeypatch.setattr("nsa_eval.progress.Progress.note", lambda self, text: notes.append(text))
    chat = shutil.copytree(tiny_checkpoints[0], tmp_path / "One-Instruct")
    nsa_eval.evaluate([str(chat)], [TASK], output=tmp_path / "run", limit=1, progress=False)
    assert len(notes) == 1
    assert "chat_template isn't set" in notes[0]


@pytest.mark.parametrize(("given", "bars"), [(None, False), ("", True)])
def test_the_command_line_shows_no_bar_of_lm_evals_unless_told_to(given, bars, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.delenv("LMEVAL_LOG_LEVEL", raising=False)
    if given is not None:
        monkeypatch.setenv("TQDM_DISABLE", given)
    code = (
        "from nsa_eval.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "from tqdm import tqdm\n"
        "list(tqdm(range(2), desc='over the documents'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("over the documents" in done.stderr) is bars
