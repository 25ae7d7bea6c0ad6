# ruff: noqa: E501  (whole messages on one line, as a user reads them)
"""Runs: the files they leave, going on where they stopped, and their refusals."""

import json
import os
from pathlib import Path

import pytest
import yaml

import nsa_eval
import nsa_eval._evaluate
import nsa_eval.outcome
import nsa_eval.runner
from nsa_eval._counting import CountingStore
from nsa_eval.errors import UserError
from nsa_eval.rundir import RunDirectory, differences, explain_os_error


@pytest.fixture(autouse=True)
def light_report(monkeypatch, request):
    """Charts take seconds: only the test of the real report draws them."""
    if "real_report" not in request.fixturenames:
        monkeypatch.setattr(
            "nsa_eval.report.render_report",
            lambda directory, *, out, title, **_: Path(out).write_text(f"{title}"),
        )


@pytest.fixture
def count(monkeypatch):
    """Every response that is computed, by key."""
    computed = []
    put_many = CountingStore.put_many

    def counted(self, responses):
        put_many(self, responses)
        computed.extend(responses)

    monkeypatch.setattr(CountingStore, "put_many", counted)
    return computed


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_config):
    """A finished run; tests only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "nsa_eval.report.render_report", lambda directory, *, out, **_: Path(out).write_text("page")
        )
        output = tmp_path_factory.mktemp("finished") / "run"
        return nsa_eval.run(tiny_config(report={"title": "Tiny"}), output=output, progress=False)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestFiles:
    def test_everything_is_in_its_place(self, finished):
        names = {name.split("_20")[0] for name in files(finished.output)}
        assert names == {
            "run.yaml", "env.json", "audit.json", "comparison.json", "comparison.md", "report.html",
            "store/responses.jsonl", "store/.lock",
            *(f"{m}/{f}" for m in ("one", "two")
              for f in ("results", "samples_needle_single", "samples_needle_multikey", "audit.json", "costs.json")),
        }  # fmt: skip

    def test_results_are_lm_evals_own(self, finished):
        content = finished.models[0].results
        assert content["model_name"] == content["model_name_sanitized"] == "one"
        assert set(content["results"]) == {"needle_single", "needle_multikey"}
        assert content["n-samples"]["needle_single"] == {"original": 4, "effective": 4}
        assert content["config"]["model_num_parameters"] > 0
        assert len(content["config"]["model_fingerprint"]) == 64
        assert content["config"]["device"] == "cpu"  # what it ran on, where the config says "auto"
        assert set(content["task_hashes"]) == {"needle_single", "needle_multikey"}

    def test_lm_evals_own_functions_read_the_files(self, finished):
        from lm_eval.utils import get_results_filenames, get_sample_results_filenames, make_table

        folder = finished.output / "one"
        names = [str(path) for path in folder.iterdir()]
        assert len(get_results_filenames(names)) == 1
        assert len(get_sample_results_filenames(names)) == 2
        assert "needle_single" in make_table(finished.models[0].results)

    def test_samples_carry_their_cell(self, finished):
        [file] = (finished.output / "one").glob("samples_needle_single_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert {(row["doc"]["length"], row["doc"]["depth"]) for row in rows} == {
            (256, 0.0), (256, 100.0), (320, 0.0), (320, 100.0),
        }  # fmt: skip

    def test_run_yaml_is_the_resolved_config(self, finished):
        text = (finished.output / "run.yaml").read_text()
        assert text.startswith("# The resolved config")
        data = yaml.safe_load(text)
        assert data["engine"]["truncation"] == "error"
        assert nsa_eval.load_config(finished.output) == finished.config

    def test_env_says_where_it_ran(self, finished):
        env = json.loads((finished.output / "env.json").read_text())
        assert env["versions"]["torch"]
        assert env["machine"]["cores"] >= 1
        assert env["seeds"] == {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}

    def test_the_result_in_python(self, finished):
        assert [model.name for model in finished.models] == ["one", "two"]
        [score] = [s for s in finished.models[0].scores if s.task == "needle_single"]
        assert score.metric == "score,none"
        assert (score.value, score.samples) == (0.0, 4)
        assert finished.comparison.baseline == "two"
        assert finished.report.read_text() == "page"
        assert finished.audit == ()


class TestGoingOn:
    def test_a_finished_run_started_again_touches_nothing(self, finished, tiny_config, monkeypatch):
        before = files(finished.output)
        monkeypatch.setattr("nsa_models.load_model", lambda *a, **k: pytest.fail("loaded a model"))
        again = nsa_eval.run(tiny_config(report={"title": "Tiny"}), output=finished.output, progress=False)
        assert files(finished.output) == before
        assert again.comparison == finished.comparison
        assert again.models == finished.models

    @pytest.mark.parametrize("named", ["", "run.yaml"])
    def test_a_runs_own_folder_is_where_it_goes_on(self, tiny_config, tmp_path, count, monkeypatch, named):
        monkeypatch.chdir(tmp_path)
        evaluate_checkpoint = nsa_eval._evaluate.evaluate_checkpoint

        def killed(variants, *arguments, **options):
            if variants[0].name == "two":
                raise KeyboardInterrupt
            return evaluate_checkpoint(variants, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr("nsa_eval._evaluate.evaluate_checkpoint", killed)
            with pytest.raises(KeyboardInterrupt):
                nsa_eval.run(tiny_config(), output="out/killed", limit=1, progress=False)
        result = nsa_eval.run(Path("out/killed") / named, progress=False)
        assert result.output == Path("out/killed")
        assert len(count) == len(set(count)) == 4
        assert not Path("runs").exists()

    def test_a_config_that_happens_to_be_called_run_yaml_is_no_run(self, tiny_config, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("run.yaml").write_text(yaml.safe_dump(tiny_config()))
        result = nsa_eval.run("run.yaml", limit=1, progress=False)
        assert result.output == Path("runs/tiny")

    def test_ctrl_c_loses_nothing(self, tiny_config, tmp_path, count, monkeypatch):
        interrupting = CountingStore.put_many

        def put_and_interrupt(self, responses):
            interrupting(self, responses)
            if len(count) == 3:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(CountingStore, "put_many", put_and_interrupt)
            with pytest.raises(KeyboardInterrupt):
                nsa_eval.run(tiny_config(), output=tmp_path / "run", progress=False)
        nsa_eval.run(tiny_config(), output=tmp_path / "run", progress=False)
        assert len(count) == len(set(count)) == 12

    def test_another_config_in_the_same_folder_is_refused_and_says_why(self, finished, tiny_config):
        before = files(finished.output)
        with pytest.raises(UserError) as caught:
            nsa_eval.run(
                tiny_config(),
                output=finished.output,
                overrides=["tasks.0.samples=2", "limit=1"],
                progress=False,
            )
        message = str(caught.value)
        assert "holds a run with another config" in message
        assert "  tasks[0].samples: 1 there, 2 here" in message
        assert "  limit: not given there, 1 here" in message
        assert "-o" in message
        assert "--overwrite" in message
        assert files(finished.output) == before

    def test_overwrite_replaces_results_and_reuses_responses(self, tiny_config, tmp_path, count):
        output = tmp_path / "run"
        nsa_eval.run(tiny_config(), output=output, limit=1, progress=False)
        assert len(count) == 4
        result = nsa_eval.run(tiny_config(), output=output, overwrite=True, progress=False)
        assert len(count) == len(set(count)) == 12
        assert len(list((output / "one").glob("results_*.json"))) == 1
        assert result.models[0].scores[0].samples == 4

    def test_tables_and_report_may_change_without_a_new_run(
        self, finished, tiny_config, monkeypatch, tmp_path
    ):
        import shutil

        output = shutil.copytree(finished.output, tmp_path / "copy")
        monkeypatch.setattr("nsa_models.load_model", lambda *a, **k: pytest.fail("loaded a model"))
        result = nsa_eval.run(
            tiny_config(report={"title": "New"}),
            output=output,
            overrides=["compare.baseline=one"],
            progress=False,
        )
        assert result.comparison.baseline == "one"
        assert result.report.read_text() == "New"
        assert yaml.safe_load((output / "run.yaml").read_text())["compare"]["baseline"] == "one"

    def test_changed_weights_are_noticed(self, tiny_config, tmp_path, tiny_checkpoints):
        import shutil

        from safetensors.torch import load_file, save_file

        mine = shutil.copytree(tiny_checkpoints[0], tmp_path / "mine")
        config = tiny_config(models=[{"name": "mine", "path": str(mine)}], compare={})
        nsa_eval.run(config, output=tmp_path / "run", limit=1, progress=False)
        weights = load_file(mine / "model.safetensors")
        save_file(
            {k: v + 1 for k, v in weights.items()}, mine / "model.safetensors", metadata={"format": "pt"}
        )
        with pytest.raises(UserError, match=r"mine: the weights in .* have changed since"):
            nsa_eval.run(config, output=tmp_path / "run", limit=1, progress=False)

    def test_a_model_that_fails_keeps_the_others_results(self, tiny_config, tmp_path, count, monkeypatch):
        import nsa_models

        load_model = nsa_models.load_model

        def failing(path, **options):
            if path.endswith("two"):
                raise nsa_models.ModelLoadError("two: broken")
            return load_model(path, **options)

        with monkeypatch.context() as patch:
            patch.setattr(nsa_models, "load_model", failing)
            with pytest.raises(nsa_models.ModelLoadError):
                nsa_eval.run(tiny_config(), output=tmp_path / "run", progress=False)
        assert list((tmp_path / "run" / "one").glob("results_*.json"))
        assert len(count) == 6
        nsa_eval.run(tiny_config(), output=tmp_path / "run", progress=False)
        assert len(count) == len(set(count)) == 12

    def test_two_runs_in_one_folder_at_once_are_refused(self, tiny_config, tmp_path):
        from nsa_eval.store import ResponseStore

        with (
            ResponseStore.open(tmp_path / "run" / "store" / "responses.jsonl"),
            pytest.raises(UserError, match="another run is using"),
        ):
            nsa_eval.run(tiny_config(), output=tmp_path / "run", progress=False)


class TestSettings:
    def test_limits_of_single_tasks(self, tiny_config, tmp_path):
        result = nsa_eval.run(
            tiny_config(compare={}),
            output=tmp_path / "run",
            overrides=["tasks.0.limit=3", "tasks.1.limit=0.5"],
            progress=False,
        )
        assert {s.task: s.samples for s in result.models[0].scores} == {
            "needle_single": 3,
            "needle_multikey": 1,
        }

    def test_an_alias_names_the_task_in_files(self, tiny_config, tmp_path):
        config = tiny_config()
        config["tasks"].append({**config["tasks"][0], "alias": "again", "seed": 5})
        result = nsa_eval.run(config, output=tmp_path / "run", limit=1, progress=False)
        assert list((result.output / "one").glob("samples_again_*.jsonl"))

    def test_a_run_of_lm_evals_own_task_form(self, tiny_config, tmp_path, tiny_checkpoints):
        """A task YAML in a folder of the user's, with data beside it: log-likelihoods, few-shot, no network."""
        folder = tmp_path / "mytasks"
        folder.mkdir()
        rows = [{"q": f"{i} is", "a": i % 2} for i in range(6)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "parity.yaml").write_text(
            "task: parity\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}\n"
            "output_type: multiple_choice\ntest_split: test\nfewshot_split: test\ndoc_to_text: '{{q}}'\n"
            "doc_to_target: a\ndoc_to_choice: [even, odd]\nmetric_list: [{metric: acc}]\n"
        )
        config = {
            "models": [str(tiny_checkpoints[0])],
            "tasks": [{"task": "parity", "num_fewshot": 1}],
            "include_path": [str(folder)],
        }
        result = nsa_eval.evaluate(
            config["models"], config["tasks"], include_path=config["include_path"], limit=4,
            output=str(tmp_path / "run"), progress=False,
        )  # fmt: skip
        [score] = result.models[0].scores
        assert (score.task, score.metric, score.samples) == ("parity", "acc,none", 4)
        assert result.models[0].results["n-shot"]["parity"] == 1
        assert result.comparison is None

    def test_models_with_nothing_to_compare_still_finish(self, tiny_config, tmp_path):
        """A task that keeps replies and scores nothing, as lm-eval's `--predict_only` does."""
        (tmp_path / "rows.jsonl").write_text('{"q": "one"}\n{"q": "two"}\n')
        (tmp_path / "replies.yaml").write_text(
            f"task: replies\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
            "output_type: generate_until\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{q}}'\n"
            "generation_kwargs: {until: [], max_gen_toks: 2}\nmetric_list: [{metric: bypass}]\n"
        )
        config = tiny_config(tasks=[{"task": "replies"}], include_path=[str(tmp_path)])
        result = nsa_eval.run(config, output=tmp_path / "run", progress=False)
        assert result.comparison is None
        assert result.notes == ("not compared: nothing to compare: the tasks have no numeric metric",)
        assert result.report.is_file()
        assert not (result.output / "comparison.json").exists()

    def test_a_chat_template_that_is_not_there(self, tiny_config, tmp_path):
        with pytest.raises(UserError, match="one: its tokenizer has no chat template"):
            nsa_eval.run(
                tiny_config(),
                output=tmp_path / "run",
                overrides=["models.0.chat_template=true"],
                progress=False,
            )

    def test_cuts_are_audited_and_noted(self, tiny_config, tmp_path):
        result = nsa_eval.run(
            tiny_config(), output=tmp_path / "run", overrides=["models.one.max_length=300", "engine.truncation=middle"],
            progress=False,
        )  # fmt: skip
        assert {(e["model"], e["kind"], e["task"]) for e in result.audit} == {
            ("one", "truncated", "needle_single"), ("one", "truncated", "needle_multikey"),
        }  # fmt: skip
        assert result.notes[0] == "one: 4 prompts were cut to fit (audit.json)"
        assert set(json.loads((result.output / "audit.json").read_text())) == {"one", "two"}

    def test_a_prompt_over_the_length_stops_with_a_message(self, tiny_config, tmp_path):
        with pytest.raises(UserError, match="300"):
            nsa_eval.run(
                tiny_config(),
                output=tmp_path / "run",
                overrides=["models.one.max_length=300"],
                progress=False,
            )


@pytest.fixture
def real_report():
    """Named by a test that wants the report itself."""


@pytest.mark.slow
def test_needle_from_python_to_a_real_report(tiny_checkpoints, tmp_path, real_report):
    result = nsa_eval.needle(
        [str(path) for path in tiny_checkpoints], lengths=[256], depths=[0, 50], samples=1, output=str(tmp_path / "run"),
        new_tokens=8, progress=False,
    )  # fmt: skip
    page = result.report.read_text()
    assert "<html" in page
    assert result.comparison.baseline == "one"


def test_a_dry_run_touches_nothing(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = nsa_eval.run(tiny_config(), dry_run=True)
    assert result.output is None
    assert result.plan.samples == 12
    assert list(tmp_path.iterdir()) == []


class TestFolder:
    def test_a_folder_with_other_things_is_refused(self, tiny_config, tmp_path):
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(UserError, match=r"isn't empty and isn't a run .*thesis\.tex"):
            nsa_eval.run(tiny_config(), output=tmp_path, progress=False)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file_in_the_way(self, tiny_config, tmp_path):
        (tmp_path / "run").write_text("x")
        with pytest.raises(UserError, match="a file is in the way"):
            nsa_eval.run(tiny_config(), output=tmp_path / "run", progress=False)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_folder(self, tiny_config, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="cannot be written"):
            nsa_eval.run(tiny_config(), output=tmp_path / "run", progress=False)

    @pytest.mark.parametrize(
        ("number", "message"),
        [("ENOSPC", "no space left"), ("EDQUOT", "no space left"), ("EROFS", "cannot be written"), ("EACCES", "cannot be written")],
    )  # fmt: skip
    def test_a_disk_that_refuses_is_found_before_anything_is_loaded(
        self, tiny_config, tmp_path, monkeypatch, number, message
    ):
        import errno

        code = getattr(errno, number)

        def refuse(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("nsa_models.load_tokenizer", lambda *a, **k: pytest.fail("loaded something"))
        monkeypatch.setattr("nsa_eval.rundir.os.fsync", refuse)
        with pytest.raises(UserError, match=message):
            nsa_eval.run(tiny_config(), output=tmp_path / "run", progress=False)

    def test_too_little_room_is_found_too(self, tiny_config, tmp_path, monkeypatch):
        import collections

        usage = collections.namedtuple("usage", "total used free")
        monkeypatch.setattr("nsa_eval.rundir.shutil.disk_usage", lambda path: usage(100, 99, 1 << 20))
        with pytest.raises(UserError, match="only 1 MiB are free"):
            nsa_eval.run(tiny_config(), output=tmp_path / "run", progress=False)

    def test_a_disk_that_fills_up_while_lm_eval_writes_is_noticed(self, tiny_config, tmp_path, monkeypatch):
        from lm_eval.loggers import EvaluationTracker

        save = EvaluationTracker.save_results_samples

        def half(self, task_name, samples):
            save(self, task_name=task_name, samples=samples[:-1])

        with monkeypatch.context() as patch:
            patch.setattr(EvaluationTracker, "save_results_samples", half)
            with pytest.raises(UserError, match="could not be written in full"):
                nsa_eval.run(tiny_config(), output=tmp_path / "run", limit=2, progress=False)
        assert RunDirectory(tmp_path / "run").results_file("one") is None
        result = nsa_eval.run(tiny_config(), output=tmp_path / "run", limit=2, progress=False)
        assert result.models[0].scores[0].samples == 2

    def test_the_folders_own_run_yaml_is_damaged(self, tiny_config, tmp_path):
        (tmp_path / "run.yaml").write_text("models: [")
        with pytest.raises(UserError, match=r"own run\.yaml can't be read"):
            nsa_eval.run(tiny_config(), output=tmp_path, progress=False)


def test_differences_name_each_key():
    there = {"tasks": [{"task": "x", "lengths": [1, 2]}], "engine": {"truncation": "error"}}
    here = {"tasks": [{"task": "x", "lengths": [1]}, {"task": "y"}], "engine": {"truncation": "left"}}
    assert list(differences(there, here)) == [
        "tasks[0].lengths: [1, 2] there, [1] here",
        "tasks[1]: not given there, y here",
        'engine.truncation: "error" there, "left" here',
    ]


def test_os_errors_say_what_to_do(tmp_path):
    import errno

    assert "free some space" in str(explain_os_error(OSError(errno.ENOSPC, "No space"), tmp_path))


def test_a_figure_of_a_length_that_was_not_asked_is_no_score(tmp_path):
    """As lm-eval's RULER marks it."""
    figures = {"4096,none": -1, "512,none": 0.5, "512_stderr,none": "N/A", "alias": "niah", "sample_len": 2}
    result = nsa_eval.outcome.ModelResult(
        name="m", results_file=tmp_path / "results.json", results={"results": {"niah": figures}}
    )
    assert [(score.metric, score.value) for score in result.scores] == [("512,none", 0.5)]
