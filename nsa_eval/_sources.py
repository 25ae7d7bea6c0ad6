"""What a model's results were made from, by content: its checkpoint, its tasks' YAML, code, data and text.

Recorded with the results, and compared when a run goes on: results of something that has changed since
aren't finished. The folder's own config is compared elsewhere (`rundir`); here it is what its names lead to.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nsa_eval._paths import is_folder, user_path
from nsa_eval.config import Variant
from nsa_eval.plan import Job
from nsa_tasks import family_of

_READ_SIZE = 1 << 22
_LARGEST_YAML = 4 * 2**20
"""Bytes. lm-eval's largest is a tenth of it."""
_NAMES = ("task", "group", "tag")
_CODE = re.compile(r"!function\b")


def task_sources(job: Job, include_path: Iterable[str]) -> dict[str, str]:
    """Hash the files that a job's task is made of, as far as they lie here and can be edited.

    lm-eval's own tasks come with its version, and data of the hub with its repository: neither is here.

    Args:
        job: The job.
        include_path: The run's folders of task YAML files.

    Returns:
        A SHA-256 by each file's name; a folder's is over the names and contents of all its files.
    """
    family = family_of(job.task.task)
    if family is not None and job.params is not None:
        files = _by_name(family.sources(job.params))
    else:
        folders = [user_path(folder).resolve() for folder in include_path]
        files = {_short(path, folders): path for path in _of_lm_eval(job.task.task, folders)}
    files |= _by_name(job.group_files)
    return {name: _hash(path) for name, path in sorted(files.items())}


def _by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their names; of several of one name the later ones by as much of their path as tells them."""
    found: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        name = next(
            (name for n in range(1, len(path.parts)) if (name := "/".join(path.parts[-n:])) not in found),
            str(path),
        )
        found[name] = path
    return found


def changes(
    variant: Variant, jobs: Iterable[Job], recorded: Mapping[str, Any], folders: Iterable[str]
) -> list[str]:
    """Say what of a finished variant's sources isn't what its results were made from.

    Args:
        variant: The variant.
        jobs: Its jobs.
        recorded: The `config` of its results file; what an older version didn't record isn't compared.
        folders: The run's include_path.

    Returns:
        One line each; none where nothing has changed.
    """
    return [
        *_checkpoint_changes(variant, recorded),
        *_method_changes(variant, recorded),
        *_task_changes(jobs, recorded, list(folders)),
    ]


def _checkpoint_changes(variant: Variant, recorded: Mapping[str, Any]) -> Iterator[str]:
    """Local folders only: the hub isn't asked for what is finished."""
    import nsa_models

    model = variant.checkpoint
    total = recorded.get("model_fingerprint")
    if not total or not (model.path.startswith("zoo:") or is_folder(user_path(model.path))):
        return
    now = nsa_models.fingerprint_of(model.path, revision=model.revision)
    if now.total == total:
        return
    parts = recorded.get("model_fingerprints")
    # Of an older version only the whole is known.
    for part in now.changed(parts) if isinstance(parts, dict) else ["weights"]:
        yield f"the {part} in {model.path} {'have' if part == 'weights' else 'has'} changed since"


def _method_changes(variant: Variant, recorded: Mapping[str, Any]) -> Iterator[str]:
    """Weights of a method's own, which lie beside the checkpoint."""
    from nsa_models.methods import make_method

    then, spec = recorded.get("method_weights"), variant.method
    if then is None or spec is None:
        return
    method = make_method(spec.name, spec.single_budget, **spec.options)
    if method.describe()["parameters"].get("weights") != then:
        yield f"the weights of {spec.name} in {spec.options.get('weights')} have changed since"


def _task_changes(jobs: Iterable[Job], recorded: Mapping[str, Any], folders: list[str]) -> Iterator[str]:
    known = recorded.get("task_sources")
    if not isinstance(known, dict):
        return
    for job in jobs:
        then = known.get(job.task.label)
        if not isinstance(then, dict):
            continue
        now = task_sources(job, folders)
        for name in sorted({*then, *now}):
            if then.get(name) != now.get(name):
                how = "is new" if name not in then else "is gone" if name not in now else "has changed"
                yield f"task {job.task.label}: {name} {how} since"


def _short(path: Path, folders: list[Path]) -> str:
    """A file's name in its folder of tasks, so that the folder may move."""
    inside = next((folder for folder in folders if path.is_relative_to(folder)), path.parent)
    return path.relative_to(inside).as_posix()


def _of_lm_eval(name: str, folders: list[Path]) -> Iterator[Path]:
    """The YAML files of a task, tag or group of the user's folders, and what they lead to."""
    texts = {path: path.read_bytes() for folder in folders for path in _yaml_files(folder)}
    wanted: list[str] = [name]
    seen: set[str] = set()
    while wanted:
        one = wanted.pop()
        if one in seen:
            continue
        seen.add(one)
        for path, text in texts.items():
            if one.encode() not in text:  # a folder may hold thousands, which take long to parse
                continue
            content = _read(path)
            if one in _names(content):
                yield from _chain(path, set())
                members = content.get("task")
                wanted += list(_members(members)) if isinstance(members, list) else []


def _chain(path: Path, seen: set[Path]) -> Iterator[Path]:
    """A YAML file, what it includes, the code that it names with all beside it, and its data."""
    if path in seen or not path.is_file():
        return
    seen.add(path)
    yield path
    content = _read(path)
    included = content.get("include")
    for name in included if isinstance(included, list) else [included]:
        if isinstance(name, str):
            yield from _chain((path.parent / name).resolve(), seen)
    if _CODE.search(path.read_text(encoding="utf-8", errors="replace")):
        yield from path.parent.glob("*.py")
    for text in _texts([content.get("dataset_path"), content.get("dataset_kwargs")]):
        file = user_path(text)
        if (file.is_absolute() or len(file.parts) > 1 or file.suffix) and file.exists():
            yield file.resolve()


class _Loader(yaml.SafeLoader):
    """YAML with functions left as text: nothing is imported."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix} {node.value}")


def _read(path: Path) -> dict[str, Any]:
    """A task's YAML; nothing of one that lm-eval will refuse with a message of its own."""
    try:
        if path.stat().st_size > _LARGEST_YAML:
            return {}
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _yaml_files(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in folder.rglob("*")
        if path.suffix in {".yaml", ".yml"} and path.is_file() and path.stat().st_size <= _LARGEST_YAML
    )


def _names(content: Mapping[str, Any]) -> set[str]:
    return {name for key in _NAMES for name in _texts(content.get(key))} if content else set()


def _members(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            yield from (entry[key] for key in _NAMES if isinstance(entry.get(key), str))


def _texts(value: object, seen: set[int] | None = None) -> Iterator[str]:
    """Every text in nested lists and mappings; what YAML's aliases repeat is looked at once."""
    seen = set() if seen is None else seen
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item, seen)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        if path.is_dir():
            digest.update(os.fsencode(file.relative_to(path)) + b"\0")
        if file.is_file():  # a pipe would be waited on for ever
            digest.update(str(file.stat().st_size).encode() + b"\0")
            with file.open("rb") as handle:
                while piece := handle.read(_READ_SIZE):
                    digest.update(piece)
    return digest.hexdigest()
