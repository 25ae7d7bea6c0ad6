"""What there is to run: bundled configs, models and tasks, found without importing torch."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from nsa_eval._paths import is_file, is_folder, user_path
from nsa_eval.errors import UserError
from nsa_settings import did_you_mean

_LARGEST_CONFIG = 16 * 2**20
"""Bytes. A larger file is no config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One line of `nsa-eval ls`."""

    name: str
    """What to write in a config or on the command line."""
    kind: str
    """What sort it is: attention of a model, task family and protocol of a task, ..."""
    description: str
    """One line."""
    path: Path | None = None
    """Where it lies, if it is a file or folder."""


def configs_dir() -> Path:
    """The folder of bundled configs: inside an installed wheel, or `configs/` of a checkout."""
    inside = Path(str(resources.files("nsa_eval"))) / "configs"
    return inside if inside.is_dir() else Path(__file__).resolve().parent.parent / "configs"


def list_configs() -> list[CatalogEntry]:
    """The bundled configs, each with the first comment line that isn't a command."""
    entries = []
    for path in sorted(configs_dir().glob("*.yaml")):
        lines = [
            line.lstrip("# ").rstrip()
            for line in path.read_text(encoding="utf-8").splitlines()[:12]
            if line.startswith("#")
        ]
        title = next((line for line in lines if line and not line.startswith("nsa-eval ")), "")
        entries.append(CatalogEntry(name=path.stem, kind="config", description=title, path=path))
    return entries


def find_config(name: str | os.PathLike[str]) -> Path:
    """Find a config by path or bundled name.

    Args:
        name: A path, or a name that `nsa-eval ls configs` shows, with or without `configs/` and `.yaml`.

    Raises:
        UserError: Neither.
    """
    path = user_path(name)
    if is_file(path):
        return path
    if is_folder(path):
        if is_file(path / "run.yaml"):
            return path / "run.yaml"
        raise UserError(f"{name}: a folder without a run.yaml; name a config file")
    bundled = {entry.name: entry.path for entry in list_configs()}
    found = (
        bundled.get(path.stem)
        if path.parent in {Path(), Path("configs")} and path.suffix in {"", ".yaml"}
        else None
    )
    if found is not None:
        return found
    raise UserError(f"{name}: no such config file or bundled config{did_you_mean(path.stem, bundled)}")


def zoo_names() -> list[str]:
    """The bundled checkpoints as `zoo:NAME`, by their folders alone: for checking names."""
    home = _models_package() / "zoo"
    return [f"zoo:{file.parent.name}" for file in sorted(home.glob("*/config.json"))]


def checkpoint_config(path: str) -> dict[str, Any] | None:
    """The config.json of a bundled or local checkpoint, unchecked; None where it isn't at hand."""
    folder = zoo_folder(path) if path.startswith("zoo:") else user_path(path)
    try:
        file = folder / "config.json"
        if not is_file(file) or file.stat().st_size > _LARGEST_CONFIG:
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # said in full when the checkpoint is loaded
        return None
    return content if isinstance(content, dict) else None


def list_methods() -> list[CatalogEntry]:
    """The sparse-attention methods (importing them takes seconds: they import torch)."""
    from nsa_models.methods import methods

    return [
        CatalogEntry(
            name=name,
            kind=f"{method.phase if method.phase != 'both' else 'prefill and decode'}, arXiv {method.paper}",
            description=f"{method.title}; budget: {method.budget_unit}",
        )
        for name, method in methods().items()
    ]


def zoo_folder(name: str) -> Path:
    """The folder of `zoo:NAME`; it need not exist."""
    return _models_package() / "zoo" / name.removeprefix("zoo:")


def _models_package() -> Path:
    spec = importlib.util.find_spec("nsa_models")
    return Path(spec.origin).parent if spec and spec.origin else Path()


def list_models() -> list[CatalogEntry]:
    """The bundled checkpoints.

    Importing nsa_models registers its classes with transformers, which takes seconds of importing torch. The
    file that knows the zoo needs neither, so it is run by itself.
    """
    name = "nsa_models.checkpoints"
    checkpoints = sys.modules.get(name) or _run_file(_models_package() / "checkpoints.py", f"_{name}")
    return [
        CatalogEntry(
            name=f"zoo:{entry.name}",
            kind=f"{entry.attention}, {entry.parameters / 1e6:.1f}M parameters",
            description=entry.description,
            path=Path(entry.path),
        )
        for entry in checkpoints.zoo()
    ]


def _run_file(file: Path, name: str) -> types.ModuleType:
    """Import one file of a package without the package."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file}: can't be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def list_tasks() -> list[CatalogEntry]:
    """The project's own tasks, groups first (lm-eval's come on top: see `lm_eval_tasks`)."""
    from nsa_tasks import list_groups
    from nsa_tasks import list_tasks as own_tasks

    return [
        CatalogEntry(name=info.name, kind=f"{kind}, protocol {info.protocol}", description=info.description)
        for kind, info in (
            *((f"group of {info.family}", info) for info in list_groups()),
            *((info.family, info) for info in own_tasks()),
        )
    ]


LARGEST_TASK_FILE = 4 * 2**20
"""Bytes. lm-eval's largest YAML is a tenth of it."""
_TASK_LINE = re.compile(
    rb"""^["']?(?:task|group|tag)["']?:[ \t]*(?P<one>[^\s#\[][^\s#]*|\[[^\]]*\])
    |^[ ]*-[ ]+(?P<item>[^\s#:]+)[ \t]*(?:\#.*)?$""",
    re.MULTILINE | re.VERBOSE,
)


@lru_cache(maxsize=1)
def _installed_names() -> frozenset[str]:
    spec = importlib.util.find_spec("lm_eval")
    return _names_in(str(Path(spec.origin).parent / "tasks")) if spec and spec.origin else frozenset()


def _names_in(folder: str) -> frozenset[str]:
    names: set[str] = set()
    for root, _, files in os.walk(folder):
        for file in files:
            # What a task includes names tags too, under names such as `_default_template_yaml` or `_gpqa`.
            path = Path(root, file)
            if (file.endswith("yaml") or "." not in file) and is_file(path):
                names |= names_in_file(path)
    return frozenset(names)


def names_in_file(path: Path) -> set[str]:
    """Names of the tasks, groups and tags in one file of task YAML, with a word too many at times."""
    if path.stat().st_size > LARGEST_TASK_FILE:
        return set()
    names: set[str] = set()
    for match in _TASK_LINE.finditer(path.read_bytes()):
        text = (match["one"] or match["item"]).decode("utf-8", "replace")
        names.update(part.strip(" \"'") for part in text.strip("[]").split(","))
    return names - {""}


def task_yaml_files(folder: Path) -> list[Path]:
    """The files of a folder that lm-eval reads as task YAML, those below included."""
    return sorted(path for path in folder.rglob("*.yaml") if not path.is_dir())


_MODEL_LINE = re.compile(r'^    "(?P<name>[\w-]+)": "lm_eval\.models\.', re.MULTILINE)


@lru_cache(maxsize=1)
def lm_eval_models() -> frozenset[str]:
    """Names of lm-eval's model classes, without importing them: `--model` of its command line."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.origin:
        return frozenset()
    text = (Path(spec.origin).parent / "models" / "__init__.py").read_text(encoding="utf-8")
    return frozenset(match["name"] for match in _MODEL_LINE.finditer(text))


def lm_eval_tasks(include_path: Iterable[str] = ()) -> frozenset[str]:
    """Names of lm-eval's tasks, groups and tags.

    lm-eval's own index parses 14,000 YAML files in 7 seconds; this reads their `task:`, `group:` and `tag:`
    lines in half a second. It may know a word too many (an entry of some other list), never a task too few.

    Args:
        include_path: More folders with task YAML files.
    """
    return _installed_names() | task_names(include_path)


def task_names(folders: Iterable[str]) -> frozenset[str]:
    """Names of the tasks, groups and tags in folders of task YAML files, with a word too many at times."""
    return frozenset().union(*(_names_in(folder) for folder in folders))
