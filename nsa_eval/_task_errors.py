"""What is wrong with a task of lm-eval's: its YAML, its data, its code or a document, by file and line.

lm-eval leaves a task out whose YAML it can't read, and lets everything else that fails through as it is. What
fails in a task, and not in code of ours that it calls, is the user's to mend.
"""

from __future__ import annotations

import json
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from nsa_eval._words import said
from nsa_eval.catalog import names_in_file, task_yaml_files
from nsa_eval.errors import UserError
from nsa_settings import YamlError, check_shape

_OURS = ("nsa_eval", "nsa_models", "nsa_kernels")
_NOT_FOUND = {
    "ConnectError",
    "DatasetNotFoundError",
    "HfHubHTTPError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
}
"""Names of what the hub's libraries raise when data can't be had; importing them all would take seconds."""


class _Loader(yaml.SafeLoader):
    """YAML with functions left as text: nothing is imported."""


def _as_text(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> str:
    return f"!{suffix} {node.value}"


_Loader.add_multi_constructor("!", _as_text)


def loading_error(task: str, name: str, error: Exception, folders: Iterable[Path]) -> Exception:
    """What to raise when a task of lm-eval's can't be loaded.

    Args:
        task: How the config calls it.
        name: Its name.
        error: What was raised.
        folders: The run's folders of task YAML files.
    """
    files = [file for folder in folders for file in task_yaml_files(folder) if name in names_in_file(file)]
    for file in files:
        problem = yaml_problem(file) or data_problem(file)
        if problem:
            return UserError(f"task {task}: {problem}")
    kind = type(error).__name__
    offline = isinstance(error, ConnectionError | FileNotFoundError | TimeoutError) or kind in _NOT_FOUND
    if offline:
        hint = ""
        if isinstance(error, ConnectionError | TimeoutError):
            hint = "; run it once where the Hugging Face hub can be reached: later its cache will do"
        return UserError(f"task {task} can't be loaded ({said(error)}){hint}")
    if isinstance(error, ImportError):
        return UserError(f"task {task} needs a package that isn't installed: {_place(error)}{said(error)}")
    if not _is_ours(error):
        where = _place(error) or (f"{files[0]}: " if files else "")
        # lm-eval tries its templates on the first document as it loads a task.
        tried = [entry.name for entry in traceback.extract_tb(error.__traceback__)]
        part = next((part for part in reversed(tried) if part.startswith("doc_to_")), None)
        where += f"{part} of its first document: " if part else ""
        hint = ""
        if isinstance(error, IndexError):
            hint = " (in its first document: no choices, an empty one, or an answer without a choice)"
        return UserError(f"task {task} can't be loaded: {where}{said(error)}{hint}")
    return error


def folder_error(error: Exception, folders: Iterable[Path]) -> Exception:
    """What to raise when lm-eval can't list the tasks of a folder."""
    for folder in folders:
        for file in task_yaml_files(folder):
            problem = yaml_problem(file)
            if problem:
                return UserError(f"include_path: {problem}")
    return error


def asking_error(error: Exception) -> Exception:
    """What to raise when lm-eval's evaluation fails: in the making of a request, or in its scoring."""
    if isinstance(error, UserError) or _is_ours(error):
        return error
    task = document = None
    inside: list[str] = []
    for frame in reversed(list(_frames(error))):
        found = frame.f_locals
        inside.append(frame.f_code.co_name)
        # The evaluation's own loop leaves its last document behind: it is to blame while it is scored alone.
        if (
            document is None
            and "doc_id" in found
            and ("evaluate" not in inside or "process_results" in inside)
        ):
            document = found["doc_id"]
        for owner in (found.get("self"), found.get("task")):
            name = getattr(getattr(owner, "config", None), "task", None)
            task = name if task is None and isinstance(name, str) else task
    if task is None:
        return error
    which = f"task {task}" if document is None else f"task {task}, document {document}"
    return UserError(f"{which}: {_place(error)}{said(error)}. Finished responses are kept.")


def yaml_problem(file: Path, above: tuple[Path, ...] = ()) -> str | None:
    """What is wrong with a task's YAML or with what it includes; None where nothing is."""
    if file in above:
        chain = " includes ".join(path.name for path in (*above[above.index(file) :], file))
        return f"{above[-1]}: its includes go round in a circle: {chain}"
    try:
        text = file.read_text(encoding="utf-8")
        check_shape(text)
        content = yaml.load(text, Loader=_Loader)
    except YamlError as error:
        return f"{file}:{error.line}: {error.message}"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return f"{file}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem or error.context}"
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"{file}: can't be read as YAML: {said(error)}"
    if not isinstance(content, dict):
        return f"{file}: expected the keys of a task, got {type(content).__name__}"
    included = content.get("include")
    for name in included if isinstance(included, list) else [included]:
        if name is None:
            continue
        inner = Path(os.path.normpath(file.parent / str(name)))
        if not inner.is_file():
            return f"{file}: includes {name}, which isn't there ({inner})"
        if problem := yaml_problem(inner, (*above, file)):
            return problem
    return None


def data_problem(file: Path) -> str | None:
    """What is wrong with the local JSON files that a task's YAML names; None where nothing is, or none."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    arguments = content.get("dataset_kwargs") if isinstance(content, dict) else None
    files = arguments.get("data_files") if isinstance(arguments, Mapping) else None
    for name in _texts(files):
        path = Path(name)
        if "://" in name or re.search(r"[*?\[]", name):
            continue
        if not path.is_file():
            return f"its data file isn't there: {path}"
        if path.stat().st_size == 0:
            return f"its data file is empty: {path}"
        if path.suffix in {".json", ".jsonl"} and (problem := _json_problem(path)):
            return problem
    return None


def _json_problem(path: Path) -> str | None:
    """The first line that is no JSON object; nothing for a file that is one JSON value."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                if number == 1 and line.strip() in {"[", "{"}:
                    return None
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    return f"{path}, line {number}: not JSON ({said(error)})"
                if not isinstance(row, dict):
                    kind = type(row).__name__
                    return None if number == 1 else f"{path}, line {number}: expected an object, got {kind}"
    except (OSError, UnicodeDecodeError) as error:
        return f"{path}: can't be read as UTF-8 text ({said(error)})"
    return None


def _place(error: BaseException) -> str:
    """File and line of the task's own code that failed; nothing where it has none, or isn't to blame."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: "
    for entry in reversed(traceback.extract_tb(error.__traceback__)):
        parts = Path(entry.filename).parts
        inside = "tasks" in parts and "lm_eval" in parts and parts.index("lm_eval") < parts.index("tasks")
        its_own = "site-packages" not in parts and "dist-packages" not in parts and entry.filename[:1] != "<"
        lib = Path(os.__file__).parent
        its_own = its_own and not Path(entry.filename).is_relative_to(lib) and not _under_ours(entry.filename)
        loader = parts[-1] in {"manager.py", "_factory.py", "_index.py", "_yaml_loader.py", "__init__.py"}
        if its_own or (inside and not loader):
            return f"{entry.filename}, line {entry.lineno}, in {entry.name}: "
    return ""


def _is_ours(error: BaseException) -> bool:
    """Whether code of ours that lm-eval called failed: what we call it with is a task's own."""
    called = False
    for entry in traceback.extract_tb(error.__traceback__):
        if "lm_eval" in Path(entry.filename).parts:
            called = True
        elif called and _under_ours(entry.filename):
            return True
    return not called


def _under_ours(filename: str) -> bool:
    path = Path(filename)
    packages = {Path(root).resolve() for root in _package_folders()}
    return any(path.is_relative_to(folder) for folder in packages)


def _package_folders() -> Iterator[Path]:
    import importlib.util

    for name in _OURS:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            yield Path(spec.origin).parent


def _frames(error: BaseException) -> Iterator[FrameType]:
    return (frame for frame, _ in traceback.walk_tb(error.__traceback__))


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - whatever YAML holds
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
