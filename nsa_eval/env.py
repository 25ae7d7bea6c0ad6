"""env.json: the machine, the versions and the command line that made a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PACKAGES = ("nsa-eval", "torch", "triton", "transformers", "lm-eval", "datasets", "tokenizers",
             "safetensors", "numpy", "scipy")  # fmt: skip


def describe(*, seeds: Sequence[int | None] = (), command: Sequence[str] | None = None) -> dict[str, Any]:
    """Describe where and how a run is made.

    Args:
        seeds: Seeds of python, numpy, torch and the few-shot sampler.
        command: The command line; default: this process's.

    Returns:
        Plain data, ready for JSON. Importing torch for the GPU's name takes a second.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv if command is None else command),
        "folder": str(Path.cwd()),
        "seeds": dict(zip(("python", "numpy", "torch", "fewshot"), seeds, strict=False)),
        "versions": {"python": platform.python_version(), **_versions()},
        "git": _git(Path(__file__).resolve().parent),
        "machine": {
            "system": platform.platform(),
            "host": platform.node(),
            "cpu": cpu_name(),
            "cores": _cores(),
            "memory_gib": memory_gib(),
            "gpus": _gpus(),
        },
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that the code runs from; None for an installed wheel or without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # A wheel in some project's .venv isn't that project's code: only our own checkout tracks this file.
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_name() -> str:
    """The processor's model."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float | None:
    """The machine's memory; None where the system doesn't say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        found.append(
            {"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        )
    return found
