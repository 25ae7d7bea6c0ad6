"""Runs one config undisturbed, and once more in a folder where it is killed again and again.

A process of its own: it imports the libraries once and forks a child for each start: ten starts take seconds.
Usage: kill_driver.py CONFIG.json REFERENCE_DIR KILLED_DIR; prints what happened as JSON.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import nsa_eval
import nsa_eval._counting
import nsa_eval._evaluate
import nsa_eval._lm_eval
import nsa_eval.engine
import nsa_eval.report
import nsa_eval.rundir


def start(config, output, stall):
    """Fork a run that writes down every response it computes, and stalls forever at the point named."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        put_many = nsa_eval._counting.CountingStore.put_many
        publish = nsa_eval.rundir.RunDirectory.publish
        log = open(f"{output}.log", "a", buffering=1)  # noqa: SIM115
        calls = 0

        def logged_put_many(self, responses):
            nonlocal calls
            calls += 1
            if stall == ("before put", calls):
                time.sleep(600)
            put_many(self, responses)
            log.writelines(f"{key}\n" for key in responses)
            if stall == ("after put", calls):
                log.write("stalled\n")
                time.sleep(600)

        def stalling_publish(self, model):
            if stall == ("before publish", model):
                log.write("stalled\n")
                time.sleep(600)
            found = publish(self, model)
            if stall == ("after publish", model):
                log.write("stalled\n")
                time.sleep(600)
            return found

        nsa_eval._counting.CountingStore.put_many = logged_put_many
        nsa_eval.rundir.RunDirectory.publish = stalling_publish
        nsa_eval.report.render_report = lambda directory, *, out, **_: Path(out).write_text("report")
        nsa_eval.run(config, output=output, progress=False)
        code = 0
    finally:
        os._exit(code)


def wait_for(condition, pid):
    for _ in range(3000):
        if condition():
            return
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise SystemExit("the run ended before it could be killed")
        time.sleep(0.02)
    raise SystemExit("the run never came to the point where it should be killed")


def main():
    config = json.loads(Path(sys.argv[1]).read_text())
    reference, killed = sys.argv[2:4]
    # Memoised here, so that every child inherits it: what lm-eval records of the machine takes it seconds.
    nsa_eval._lm_eval.describe_environment()
    assert os.waitpid(start(config, reference, None), 0)[1] == 0
    log = Path(f"{killed}.log")
    log.touch()
    kills = []
    for stall in [
        ("after put", 1),
        ("before put", 2),
        ("after put", 1),
        ("before publish", "one"),
        ("after publish", "one"),
        ("after put", 2),
        ("before publish", "two"),
    ]:
        before = log.read_text()
        pid = start(config, killed, stall)
        if stall[0] == "before put":
            # Nothing tells when it stalls: its first response is stored, then it computes the second.
            wait_for(lambda before=before: log.read_text().count("\n") > before.count("\n"), pid)
            time.sleep(0.3)
        else:
            wait_for(lambda before=before: log.read_text()[len(before) :].endswith("stalled\n"), pid)
        os.kill(pid, signal.SIGKILL)
        kills.append(os.WTERMSIG(os.waitpid(pid, 0)[1]))
    status = os.waitpid(start(config, killed, None), 0)[1]
    again = os.waitpid(start(config, killed, None), 0)[1]
    keys = [line for line in log.read_text().split() if line != "stalled"]
    print(json.dumps({"kills": kills, "status": status, "again": again, "keys": keys}))


main()
