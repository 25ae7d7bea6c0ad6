"""Two Ray workers, killed again and again, write the files of one process that nobody disturbs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# What differs between two runs of the same thing: when and how long they ran.
CLOCKED = {"date", "start_time", "end_time", "total_evaluation_time_seconds"}


def start(home, output):
    """The driver in a process group of its own."""
    driver = str(Path(__file__).with_name("ray_driver.py"))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    name = "local.json" if output == "calm" else "ray.json"
    return subprocess.Popen(
        [sys.executable, driver, name, output],
        cwd=home,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out[-3000:]


def shards(home):
    return {path: path.read_bytes() for path in (home / "torn" / "store").glob("responses-*.jsonl")}


def stored(home):
    """Keys in the workers' files, whole lines only."""
    return [
        record["key"]
        for content in shards(home).values()
        for line in content.splitlines(keepends=True)
        if line.endswith(b"\n")
        for record in json.loads(line)
    ]


def wait_until(condition, process):
    for _ in range(20_000):
        if condition():
            return
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.01)
    raise AssertionError("it never came so far")


def worker_of(path):
    return int(re.search(r"-(\d+)-[0-9a-f]{8}\.jsonl$", path.name)[1])


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def story(tmp_path_factory, tiny_config):
    home = tmp_path_factory.mktemp("ray")
    config = tiny_config()
    config["models"][0]["variants"] = [{}, {"set": {"rms_norm_eps": 0.01}}]
    del config["models"][1]
    config["compare"] = {"resamples": 200}
    config["tasks"][0] |= {"depths": 5, "samples": 2, "lengths": [320, 400], "new_tokens": 24}
    (home / "local.json").write_text(json.dumps(config))
    (home / "ray.json").write_text(json.dumps({**config, "executor": {"kind": "ray", "workers": 2}}))
    told = {"killed": []}
    finish(start(home, "calm"))

    process = start(home, "torn")
    wait_until(lambda: len(stored(home)) >= 2, process)
    first = next(iter(shards(home)))
    told["killed"].append(kill(worker_of(first)))  # a worker alone
    wait_until(lambda: len(shards(home)) > 2 or process.poll() is not None, process)
    told["before the driver"] = len(stored(home))
    told["killed"].append(kill(process.pid))  # the driver alone
    process.communicate()

    process = start(home, "torn")
    seen = len(shards(home))
    wait_until(lambda: len(shards(home)) > seen, process)
    newest = max(shards(home), key=lambda path: path.stat().st_mtime_ns)
    told["killed"] += [kill(worker_of(newest)), kill(process.pid)]  # both
    process.communicate()

    finish(start(home, "torn"))
    return home, told


def results(folder):
    [file] = folder.glob("results_*.json")
    return {key: value for key, value in json.loads(file.read_text()).items() if key not in CLOCKED}


def samples(folder):
    [file] = folder.glob("results_*.json")
    date = file.stem.removeprefix("results_")
    return {path.name.replace(date, "DATE"): path.read_bytes() for path in folder.glob("samples_*.jsonl")}


def test_all_kills_hit(story):
    assert story[1]["killed"] == [True] * 4


@pytest.mark.parametrize("variant", ["one", "one+rms_norm_eps=0.01"])
def test_scores_are_those_of_the_local_run_to_the_byte(story, variant):
    home, _ = story
    calm = samples(home / "calm" / variant)
    assert len(calm) == 2
    assert samples(home / "torn" / variant) == calm
    assert results(home / "torn" / variant) == results(home / "calm" / variant)


def test_the_two_variants_answer_differently_and_are_compared(story):
    home, _ = story
    comparison = json.loads((home / "calm" / "comparison.json").read_text())
    assert comparison["baseline"] == "one"
    assert {row["candidate"] for row in comparison["rows"]} == {"one+rms_norm_eps=0.01"}
    assert samples(home / "calm" / "one") != samples(home / "calm" / "one+rms_norm_eps=0.01")


def test_nothing_was_asked_twice_but_the_replies_at_hand(story):
    home, _ = story
    keys = stored(home)
    assert len(set(keys)) == 2 * (20 + 2)
    # A worker whose driver dies may store the reply at hand after the next driver has read the files.
    assert len(keys) - len(set(keys)) <= 2


def test_several_workers_had_a_part_in_it(story):
    home, _ = story
    assert len(shards(home)) >= 4
    assert (home / "torn" / "store" / "responses.jsonl").read_bytes() == b""
