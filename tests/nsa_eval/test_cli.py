# ruff: noqa: E501  (whole messages on one line, as a user reads them)
"""The command line: exit codes, one message per error, and the flags of each command."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import nsa_eval
from nsa_eval.cli import main
from nsa_eval.cli._main import as_lm_eval


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run a command line: (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        return left.value.code or 0, output, errors

    return run


@pytest.fixture
def config(tmp_path, tiny_config, monkeypatch):
    """tiny.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_config()))
    return "tiny.yaml"


@pytest.fixture(autouse=True)
def light_report(monkeypatch):
    monkeypatch.setattr(
        "nsa_eval.report.render_report",
        lambda directory, *, out=None, title=None, **_: Path(out or directory).with_suffix(".html"),
    )


COMMANDS = ["run", "eval", "needle", "compare", "report", "ls", "validate"]


class TestHelp:
    def test_no_arguments_and_help_list_the_commands(self, cli):
        code, output, _ = cli("--help")
        assert code == 0
        assert all(command in output for command in COMMANDS)
        assert "Exit codes: 0 done, 1 internal error, 2 user error, 130" in output
        assert "run" in "".join(cli()[1:])

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_shows_examples_that_parse(self, cli, command):
        code, output, _ = cli(command, "--help")
        assert code == 0
        assert f"nsa-eval {command}" in output.split("Examples:")[1]

    def test_the_version(self, cli):
        assert cli("--version")[:2] == (0, "nsa-eval 0.1.0\n") or "not installed" in cli("--version")[1]

    def test_help_needs_no_heavy_imports(self):
        code = (
            "import sys\nfrom nsa_eval.cli import main\n"
            "try: main(['run', '--help'])\n"
            "except SystemExit: pass\n"
            "heavy = [m for m in ('torch', 'transformers', 'lm_eval', 'scipy', 'numpy') if m in sys.modules]\n"
            "print('heavy', heavy)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("heavy []\n")


class TestUsageErrors:
    @pytest.mark.parametrize(
        "arguments",
        [["walk"], ["run"], ["run", "x", "--no-such-flag"], ["run", "x", "--limit", "many"], ["ls", "dogs"], ["needle", "--model", "x", "--samples", "0"], ["eval", "--model", "x"]],
    )  # fmt: skip
    def test_exit_code_2_and_no_traceback(self, cli, arguments):
        code, _, errors = cli(*arguments)
        assert code == 2
        assert "Traceback" not in errors
        assert errors

    @pytest.mark.parametrize(
        ("flag", "text", "said"),
        [("--lengths", "1x", "expected a whole number of tokens"), ("--depths", "0", "expected"), ("--needle", "worms", "expected")],
    )  # fmt: skip
    def test_a_familys_flag_is_told_by_its_name(self, cli, flag, text, said):
        _, _, errors = cli("needle", "--model", "zoo:twin-nsa-64k", flag, text, "--dry-run")
        assert errors.startswith(f"error: {flag}: {said}")

    def test_ls_says_what_it_lists(self, cli):
        _, _, errors = cli("ls")
        assert errors == "error: ls: expected models, tasks, methods or configs, got nothing\n"
        assert "got model; did you mean 'models'?" in cli("ls", "model")[2]


class TestUserErrors:
    @pytest.mark.parametrize("command", ["run", "validate"])
    def test_a_config_mistake_is_one_line(self, cli, config, command):
        Path(config).write_text(Path(config).read_text().replace("lengths", "lenghts", 1))
        code, output, errors = cli(command, config)
        assert code == 2
        assert output == ""
        lines = errors.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: tiny.yaml:")
        assert lines[0].endswith("tasks[0].lenghts: unknown key; did you mean 'lengths'?")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["run", "nowhere.yaml"], "nowhere.yaml: no such config file or bundled config"),
            (["compare", "nowhere"], "nowhere: no such directory"),
            (["eval", "--model", "hf", "--tasks", "arc_easy"], "--model hf names no checkpoint: give --model_args pretrained=PATH or --model PATH"),
            (["eval", "--model", "a/b", "--model_args", "pretrained=c", "--tasks", "arc_easy"], "the checkpoint is named twice"),
            (["eval", "--model", "a/b", "--model_args", "dtype", "--tasks", "arc_easy"], "expected KEY=VALUE pairs"),
            (["eval", "--model", "a/b", "--tasks", "arc_eazy"], "no task is named 'arc_eazy'; did you mean 'arc_easy'?"),
            (["eval", "--model", "a/b", "--tasks", ","], "tasks: the list is empty"),
            (["needle", "--model", "./no/folder"], "models[0].path: no such folder: ./no/folder"),
            (["needle", "--model", "a/b", "--lengths", "1k,huge"], "--lengths: "),
            (["needle", "--model", "a/b", "--depths", "low"], "--depths: expected numbers separated by commas, got 'low'"),
            (["needle", "--model", "a/b", "--depths", "0,101"], "--depths: "),
            (["needle", "--model", "a/b", "--batch_size", "big"], "expected auto or a number of rows"),
            (["run", "quickstart", "--limit", "0"], "expected a number of samples"),
        ],
    )  # fmt: skip
    def test_each_is_one_message(self, cli, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        code, _, errors = cli(*arguments)
        assert code == 2
        assert errors.startswith("error: ")
        assert message in errors
        assert "Traceback" not in errors
        assert list(tmp_path.iterdir()) == []

    def test_a_broken_checkpoint(self, cli, config, tiny_checkpoints, tmp_path):
        import shutil

        broken = shutil.copytree(tiny_checkpoints[0], tmp_path / "broken")
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        code, _, errors = cli("run", config, "--set", f"models.one.path={broken}")
        assert code == 2
        last = errors.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert "safetensors" in last

    def test_nan_weights(self, cli, config, tiny_checkpoints, tmp_path):
        import shutil

        from safetensors.torch import load_file, save_file

        broken = shutil.copytree(tiny_checkpoints[0], tmp_path / "nan")
        weights = load_file(broken / "model.safetensors")
        weights["lm_head.weight"][3] = float("nan")
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        code, _, errors = cli("run", config, "--set", f"models.one.path={broken}")
        assert code == 2
        assert "NaN" in errors.strip().splitlines()[-1]


class TestOtherEnds:
    def test_an_internal_error_names_the_file_with_the_traceback(self, cli, config, monkeypatch):
        def fail(*_, **__):
            raise ZeroDivisionError("division of [red]nothing")

        monkeypatch.setattr("nsa_eval.plan.make_plan", fail)
        code, _, errors = cli("validate", config)
        assert code == 1
        assert "internal error: ZeroDivisionError: division of [red]nothing" in errors
        assert "Traceback" not in errors
        path = Path(errors.split("The traceback is in ")[1].split(";")[0])
        assert "ZeroDivisionError" in path.read_text()
        path.unlink()

    def test_ctrl_c_is_one_message_and_130(self, cli, config, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("nsa_eval._evaluate.evaluate_checkpoint", interrupt)
        code, _, errors = cli("run", config, "-o", "out")
        assert code == 130
        assert errors.strip().splitlines()[-1] == (
            "stopped. Every finished response is kept: run the same command again to go on."
        )


class TestRun:
    def test_a_run_prints_the_table_and_the_reports_path(self, cli, config):
        code, output, _ = cli("run", config, "--limit", "1", "-o", "out", "--set", "compare.resamples=100")
        assert code == 0
        assert "needle_single" in output
        assert "too few documents" in output
        assert output.strip().splitlines()[-1] == "report: out/report.html"
        assert yaml.safe_load(Path("out/run.yaml").read_text())["limit"] == 1
        assert cli("compare", "out", "--format", "md", "--resamples", "100")[1].count("|") > 10
        code, output, _ = cli("compare", "out:one", "out:two", "--format", "json", "-o", "c.json")
        assert (code, output) == (0, "c.json\n")
        assert json.loads(Path("c.json").read_text())["baseline"] == "two"

    def test_one_models_scores_are_printed_when_there_is_nothing_to_compare(
        self, cli, config, tiny_checkpoints
    ):
        code, output, errors = cli(
            "needle", "--model", tiny_checkpoints[0], "--lengths", "256", "--depths", "50,", "--samples", "1",
            "--set", "tasks.0.new_tokens=4", "-o", "out",
        )  # fmt: skip
        assert code == 0
        assert "one" in output
        assert "score,none" in output
        assert "one: preparing tasks" in errors

    def test_quiet_prints_the_path_alone(self, config, monkeypatch):
        """In a process of its own, as a user starts it: lm-eval's bars are switched off before tqdm is imported."""
        for name in ("TQDM_DISABLE", "LMEVAL_LOG_LEVEL"):
            monkeypatch.delenv(name, raising=False)
        code = (
            "import nsa_eval.report\nfrom nsa_eval.cli import main\n"
            "nsa_eval.report.render_report = lambda directory, *, out, **_: out.write_text('')\n"
            f"main(['run', {config!r}, '--limit', '1', '-o', 'out', '-q'])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "report: out/report.html\n", "")

    def test_a_dry_run_lists_jobs_and_loads_nothing(self, cli, config, tmp_path):
        code, output, _ = cli("run", config, "--dry-run")
        assert code == 0
        assert output.count("needle_single") == 4
        assert output.splitlines()[-2].split() == ["total", "12", "3,584"]
        assert output.splitlines()[-1].startswith("time: nothing is known")
        assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]

    def test_a_dry_run_says_which_sizes_are_upper_bounds(self, cli, config):
        few = [
            "--set",
            "tasks=[{task: lb_qasper, limit: 2}, {task: needle_single, lengths: [256], samples: 1, depths: 1}]",
        ]
        code, output, _ = cli("run", config, "--dry-run", *few)
        assert code == 0
        told = [line.split("  ")[-1].strip() for line in output.splitlines()]
        assert told.count("up to 63,256") == 2
        assert told.count("256") == 2
        assert "up to 127,024" in told  # the total
        assert (
            "up to: as if every prompt were as long as LongBench's cut lets it be (31,500 tokens where the"
            in output
        )
        _, output, _ = cli("validate", config, *few)
        assert output.rstrip().endswith("6 samples, up to 127,024 tokens")


class TestEval:
    @pytest.fixture
    def asked(self, monkeypatch):
        """What `eval` and `needle` would run."""
        configs = []

        def record(config, **options):
            configs.append((nsa_eval.load_config(config, options["overrides"]), options))
            raise SystemExit(0)

        monkeypatch.setattr("nsa_eval.runner.run", record)
        return configs

    def test_flags_are_lm_evals(self, cli, asked):
        cli(
            "eval", "--model", "hf", "--model_args", "pretrained=org/name,dtype=bfloat16,revision=main",
            "--tasks", "arc_easy", "gsm8k,hellaswag", "--num_fewshot", "5", "--batch_size", "4", "--limit", "0.5", "--device", "cpu",
            "--apply_chat_template", "--system_instruction", "Be brief.", "--gen_kwargs", "temperature=0.7,do_sample=true",
            "--seed", "0,None,8,52", "--trust_remote_code", "--truncation", "left", "-o", "out",
        )  # fmt: skip
        [(config, options)] = asked
        [model] = config.models
        assert (model.path, model.dtype, model.revision, model.device) == (
            "org/name",
            "bfloat16",
            "main",
            "cpu",
        )
        assert (model.chat_template, model.system_instruction, model.trust_remote_code) == (
            True,
            "Be brief.",
            True,
        )
        assert [task.task for task in config.tasks] == ["arc_easy", "gsm8k", "hellaswag"]
        assert {task.num_fewshot for task in config.tasks} == {5}
        assert config.tasks[0].gen_kwargs == {"temperature": 0.7, "do_sample": True}
        assert (config.engine.batch_size, config.engine.truncation) == (4, "left")
        assert config.seed == (0, None, 8, 52)
        assert (options["limit"], str(options["output"])) == (0.5, "out")
        assert config.name.startswith("eval-")

    def test_needle_builds_the_same_config(self, cli, asked):
        cli(
            "needle",
            "--model",
            "a/b",
            "--model",
            "c/b",
            "--lengths",
            "1k,4k",
            "--depths",
            "11",
            "--samples",
            "2",
            "--haystack",
            "noise",
            "--seed",
            "3",
        )
        [(config, _)] = asked
        assert [model.name for model in config.models] == ["b", "b-2"]
        assert config.compare.baseline == "b"
        assert config.tasks[0].params == {
            "lengths": [1024, 4096],
            "depths": 11,
            "samples": 2,
            "haystack": "noise",
            "seed": 3,
        }

    def test_the_same_command_finds_the_same_folder(self, cli, asked):
        for depths in ("11", "11", "5"):
            cli("needle", "--model", "a/b", "--depths", depths)
        names = [config.name for config, _ in asked]
        assert names[0] == names[1] != names[2]

    @pytest.mark.parametrize(
        ("given", "read"),
        [
            (["eval", "--tasks", "a", "b", "-o", "x"], ["eval", "--tasks", "a,b", "-o", "x"]),
            (["eval", "--tasks", "a,", "b"], ["eval", "--tasks", "a,b"]),
            (["eval", "--apply_chat_template", "--limit", "3"], ["eval", "--apply_chat_template", "true", "--limit", "3"]),
            (["eval", "--apply_chat_template", "tool_use"], ["eval", "--apply_chat_template", "tool_use"]),
            (["run", "--tasks", "a", "b"], ["run", "--tasks", "a", "b"]),
            ([], []),
        ],
    )  # fmt: skip
    def test_lists_as_lm_eval_writes_them(self, given, read):
        assert as_lm_eval(given) == read

    @pytest.mark.parametrize(
        ("command", "without"), [("run", ()), ("eval", ()), ("needle", ("confirm_run_unsafe_code",))]
    )
    def test_every_command_that_evaluates_ends_with_the_flags_of_a_run(self, command, without):
        from typer.main import get_command

        from nsa_eval.cli._commands import app
        from nsa_eval.cli._starting import RunFlags

        shared = [field.name for field in dataclasses.fields(RunFlags) if field.name not in without]
        given = [parameter.name for parameter in get_command(app).commands[command].params]
        assert given[-len(shared) :] == shared
        assert len(given) == len(set(given))


class TestLists:
    def test_configs_tasks_and_models(self, cli):
        assert "quickstart\tconfig\t" in cli("ls", "configs")[1]
        assert "needle_single\t" in cli("ls", "tasks")[1]
        assert cli("ls", "models")[0] == 0
        assert "arc_easy\n" in cli("ls", "tasks", "--lm-eval", "--match", "arc_")[1]

    def test_models_are_listed_without_importing_torch_and_as_the_package_knows_them(self):
        code = (
            "import sys\nfrom nsa_eval.catalog import list_models\nlisted = list_models()\n"
            "print([m for m in ('torch', 'transformers', 'nsa_models') if m in sys.modules])\n"
            "import nsa_models\nassert listed and listed == list_models()\n"
            "assert [entry.path for entry in listed] == [entry.path for entry in nsa_models.zoo()]\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")

    def test_bundled_configs_are_valid_and_open_with_their_command(self, cli):
        from nsa_eval.catalog import list_configs

        entries = list_configs()
        assert {entry.name for entry in entries} >= {"quickstart", "needle-64k"}
        for entry in entries:
            assert entry.path.read_text().startswith(f"# nsa-eval run configs/{entry.name}.yaml")
            assert entry.description
            code, output, errors = cli("validate", entry.name)
            assert code == 0, errors
            assert "samples" in output

    @pytest.mark.slow
    def test_every_name_in_lm_evals_index_is_known(self):
        """The quick scan may know words too many, but a real task must never be refused."""
        from lm_eval.tasks import TaskManager

        from nsa_eval.catalog import lm_eval_tasks

        assert set(TaskManager().all_tasks) - lm_eval_tasks() == set()


def test_the_package_offers_functions_not_modules():
    import nsa_eval.comparison

    assert callable(nsa_eval.compare)
    assert all(callable(getattr(nsa_eval, name)) for name in nsa_eval.__all__)
    assert set(nsa_eval.__all__) <= set(dir(nsa_eval))
