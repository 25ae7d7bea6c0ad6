"""Prompts and configurations of others, read where they lie and checked by hash.

A benchmark's own wording is not copied into this project: it is read at run time, from the installed lm_eval
package or from an official file of the user's, and only as the exact file that a task was written against. A
file that has changed is an error, not another score.
"""

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import yaml

from nsa_tasks._errors import TaskDataError
from nsa_tasks._yaml import PlainLoader
from nsa_tasks.data import check_sha256


def package_file(package: str, path: str) -> Path:
    """Find a file inside an installed package, without importing the package.

    Args:
        package: Top-level package, such as "lm_eval".
        path: Path inside it, such as "tasks/gsm8k/gsm8k.yaml".

    Raises:
        TaskDataError: The package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise TaskDataError(f"the package {package} is not installed, which {path} is read from.")
    file = Path(spec.origin).parent / path
    if not file.is_file():
        raise TaskDataError(
            f"the installed {package} has no {path} (looked for {file}): this task needs a version that "
            "has it."
        )
    return file


def read_text(path: Path, *, sha256: str) -> str:
    """Read a file of the user's whose exact content a task was written against.

    Raises:
        TaskDataError: Not there, not a regular file, not UTF-8, or another content: both hashes are named.
    """
    if not path.exists():
        raise TaskDataError(f"no {path.absolute()}: the file whose SHA-256 is {sha256} is read from there.")
    check_sha256(path, sha256)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{path}: not UTF-8 text (byte {error.start}).") from None


def read_json(path: Path, *, sha256: str) -> Any:  # noqa: ANN401  (any JSON value)
    """Read such a file as JSON."""
    return json.loads(read_text(path, sha256=sha256))


def lm_eval_source(path: str, *, sha256: str) -> ast.Module:
    """Parse one of lm-eval's own Python files out of the installed package, without running it.

    For wording that stands in code: importing a task's module asks for packages that its prompts don't need.

    Args:
        path: Path below `lm_eval/tasks`.
        sha256: Of the file.

    Raises:
        TaskDataError: Not installed, no such file, or another version of it: both hashes are named.
    """
    return ast.parse(read_text(package_file("lm_eval", f"tasks/{path}"), sha256=sha256))


def constants_of(module: ast.Module) -> dict[str, Any]:
    """The literals that a module assigns to names at its top level; whatever is computed is left out."""
    found: dict[str, Any] = {}
    for node in module.body:
        if isinstance(node, ast.Assign):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                continue
            found |= {target.id: value for target in node.targets if isinstance(target, ast.Name)}
    return found


def lm_eval_yaml(path: str, *, sha256: str) -> dict[str, Any]:
    """Read one of lm-eval's own task YAMLs out of the installed package.

    Args:
        path: Path below `lm_eval/tasks`.
        sha256: Of the file. What the file includes is a file of its own: read and check that too.

    Returns:
        Its keys, with functions left as their names.

    Raises:
        TaskDataError: Not installed, no such file, or another version of it: both hashes are named.
    """
    text = read_text(package_file("lm_eval", f"tasks/{path}"), sha256=sha256)
    content = yaml.load(text, Loader=PlainLoader)
    if not isinstance(content, dict):
        raise TaskDataError(f"lm_eval/tasks/{path}: expected keys and values.")
    return content
