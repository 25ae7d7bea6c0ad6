"""Every example at the end of a --help runs, and those that name a bundled checkpoint fit it."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

import nsa_eval
from nsa_eval.cli import main
from nsa_eval.cli._commands import app

EXAMPLES = [
    line
    for command in app.registered_commands
    for line in (command.epilog or "").split("\n\n")
    if line.startswith("nsa-eval ")
]
PLANNED = {"run", "eval", "needle"}
"""Commands with --dry-run."""
BUNDLED = re.compile(r"nsa-eval (run|eval|needle) .*(zoo:|quickstart)")
"""Examples that evaluate a bundled checkpoint."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_config, tiny_checkpoints):
    """A folder with what the examples name: a config, a checkpoint, finished runs."""
    home = tmp_path_factory.mktemp("workplace")
    models = [
        {"name": name, "path": str(_with_long_window(path, home / "checkpoints" / name))}
        for name, path in zip(("nsa", "dense"), tiny_checkpoints, strict=True)
    ]
    config = tiny_config(models=models, compare={"resamples": 200})
    (home / "my.yaml").write_text(yaml.safe_dump(config))
    _with_long_window(tiny_checkpoints[0], home / "ckpt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "nsa_eval.report.render_report", lambda directory, *, out, **_: Path(out).write_text("page")
        )
        nsa_eval.run(config, output=home / "runs" / "quickstart", limit=1, progress=False)
    for name in ("a", "b"):
        shutil.copytree(home / "runs" / "quickstart", home / "runs" / name)
    return home


def _with_long_window(checkpoint, folder):
    """A copy that takes 128k tokens by its config, since the examples ask for as much as real models take."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 131072}))
    return folder


def test_every_command_has_examples():
    named = {line.split()[1] for line in EXAMPLES}
    assert named == {"run", "eval", "needle", "compare", "report", "ls", "validate"}
    assert len(EXAMPLES) >= 2 * len(named)


@pytest.mark.parametrize("line", EXAMPLES)
def test_it_runs(line, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("nsa_reports.render", lambda page, *, out, **_: out)  # figures take seconds
    arguments = shlex.split(line)[1:]
    if arguments[0] in PLANNED and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    with pytest.raises(SystemExit) as left:
        main(arguments)
    output, errors = capsys.readouterr()
    assert not left.value.code, errors
    assert output or "-o" in arguments


def _plan(monkeypatch, arguments):
    """The plan of a command line, without running it."""
    plans = []

    def record(config, *, overrides, limit, **_):
        extra = [] if limit is None else [f"limit={limit:g}"]
        plans.append(nsa_eval.make_plan(nsa_eval.load_config(config, [*overrides, *extra])))
        raise SystemExit(0)

    monkeypatch.setattr("nsa_eval.runner.run", record)
    with pytest.raises(SystemExit):
        main(arguments)
    [plan] = plans
    return plan


@pytest.mark.parametrize(
    "line",
    [line for line in EXAMPLES if BUNDLED.match(line)]
    + ["nsa-eval needle --model zoo:twin-full-v0 --model zoo:twin-nsa-v0"],
)  # fmt: skip
def test_what_it_asks_of_a_bundled_checkpoint_fits(line, workplace, monkeypatch):
    """A dry run can't know: it loads neither weights nor tokenizers."""
    from nsa_eval.catalog import list_models

    longest = {
        entry.name: json.loads((entry.path / "config.json").read_text())["max_position_embeddings"]
        for entry in list_models()
    }
    monkeypatch.chdir(workplace)
    for job in _plan(monkeypatch, shlex.split(line)[1:]).jobs:
        assert max(job.task.params["lengths"]) <= longest[job.model.path]
