"""A run killed with SIGKILL, again and again, ends with the same files as an undisturbed one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# What differs between two runs of the same thing: when, how long, and in which folder they ran.
CLOCKED = {"date", "start_time", "end_time", "total_evaluation_time_seconds"}


def results(folder: Path) -> dict:
    [file] = folder.glob("results_*.json")
    return {key: value for key, value in json.loads(file.read_text()).items() if key not in CLOCKED}


def samples(folder: Path) -> dict:
    """The bytes of every samples file by task; the date in the name is the results file's."""
    [file] = folder.glob("results_*.json")
    date = file.stem.removeprefix("results_")
    return {path.name.replace(date, "DATE"): path.read_bytes() for path in folder.glob("samples_*.jsonl")}


@pytest.fixture(scope="module")
def story(tmp_path_factory, tiny_config):
    home = tmp_path_factory.mktemp("kill")
    (home / "config.json").write_text(json.dumps(tiny_config()))
    command = [
        sys.executable,
        str(Path(__file__).with_name("kill_driver.py")),
        "config.json",
        "calm",
        "killed",
    ]
    # One thread: forked children of a process with a thread pool would wait for threads that weren't forked.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    return home, json.loads(done.stdout.splitlines()[-1])


def test_every_kill_was_a_kill_and_the_last_start_finished(story):
    _, told = story
    assert told["kills"] == [9] * 7
    assert told["status"] == 0
    assert told["again"] == 0


@pytest.mark.parametrize("model", ["one", "two"])
def test_results_and_samples_are_those_of_an_undisturbed_run(story, model):
    home, _ = story
    assert results(home / "killed" / model) == results(home / "calm" / model)
    calm = samples(home / "calm" / model)
    assert len(calm) == 2
    assert samples(home / "killed" / model) == calm


def test_comparison_and_audit_are_the_same(story):
    home, _ = story
    for name in ("audit.json", "comparison.md", "run.yaml"):
        calm = (home / "calm" / name).read_text()
        assert (home / "killed" / name).read_text().replace("killed", "calm") == calm


def test_no_finished_request_was_asked_twice(story):
    home, told = story
    assert len(told["keys"]) == len(set(told["keys"])) == 12
    calm = (home / "calm.log").read_text().split()
    assert set(calm) == set(told["keys"])


def test_nothing_is_left_behind(story):
    home, _ = story
    names = {path.name for path in (home / "killed").iterdir()}
    assert names == {path.name for path in (home / "calm").iterdir()}
    assert ".partial" not in names


def test_env_lists_the_later_starts(story):
    home, _ = story
    assert "resumed" not in json.loads((home / "calm" / "env.json").read_text())
    assert len(json.loads((home / "killed" / "env.json").read_text())["resumed"]) == 7
