"""Runs a program that a model wrote, in a process of its own with limits.

Limits are no walls: the process may read what this user may read, and reach the network. Whoever runs such
tasks says so first (`--confirm_run_unsafe_code`), on a machine or in a container that can be lost.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

CPU_SECONDS = 3
"""Of computing: HumanEval's own limit, which counts seconds on the wall. A busy machine changes no score."""
WALL_SECONDS = 30
"""For a program that waits, not computes."""
_MEMORY = 4 * 2**30
_FILE_BYTES = 16 * 2**20

# Runs in the child. The word that says "passed" goes to an output that the program doesn't see, and only
# after its last line: leaving early is no way to pass.
_CHILD = """
import os, resource, sys
word, path = sys.argv[1:]
out = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
with open(path, encoding="utf-8") as file:
    text = file.read()
limits = {{"CPU": {cpu}, "AS": {memory}, "FSIZE": {size}, "CORE": 0}}
for name, most in limits.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
sys.argv = [path]
exec(compile(text, "program", "exec"), {{}})
os.write(out, word.encode())
os._exit(0)
"""


def passes(program: str) -> bool:
    """Run a program to its end.

    Args:
        program: Python: a solution, and the tests that call it.

    Returns:
        Whether it came to its last line without an error, within its limits.
    """
    word = secrets.token_hex(8)
    child = _CHILD.format(cpu=CPU_SECONDS, memory=_MEMORY, size=_FILE_BYTES)
    with tempfile.TemporaryDirectory(prefix="nsa-eval-code-") as folder:
        path = Path(folder, "program.py")
        path.write_text(program, encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", child, word, str(path)],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=WALL_SECONDS)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            _end(process)
    return said == word.encode()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the program and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()
