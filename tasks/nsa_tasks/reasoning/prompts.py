"""How a problem is put: in words of this project, in lm-eval's, or in those of a file."""

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path

from nsa_tasks._errors import TaskDataError
from nsa_tasks.data import check_sha256
from nsa_tasks.upstream import lm_eval_yaml, package_file

PLAIN = (
    "{problem}\n\n"
    "Work out the solution step by step. At the end, write the final answer, and nothing else, "
    "inside \\boxed{}."
)
"""The project's own instruction. No benchmark's: scores under it are labelled `own prompt`."""

_YAMLS = {
    "reasoning_aime24": (
        "aime/aime24.yaml",
        "3109e84a1b5d64288d45da9491a467ef50cb92d52ac64b5735d4a0780308f664",
    ),
    "reasoning_aime25": (
        "aime/aime25.yaml",
        "7c0fda485c9f5f8bc52027d6f3100b7359457f4025f5838b21289848c689b988",
    ),
    "reasoning_gsm8k": (
        "gsm8k/gsm8k.yaml",
        "82eb1780b263bc040729032b3e076990c7933f42163c91e359f38820dd1d8833",
    ),
}
"""Of lm-eval 0.4.13: where its task stands, and the hash of the file."""
_MATH = "minerva_math/utils.py"
_MATH_SHA256 = "e6b10f05b1990d3e82a4414bbf8c04a9f6b7e029c00dfe336a040ecf78acdab0"

Wording = Callable[[str], str]
"""Makes the prompt of a problem."""


def wording(task: str, prompt: str) -> Wording:
    """Find how a task's problems are put.

    Args:
        task: Its name.
        prompt: plain, lm-eval (of its task on the same problems, without its examples and its stops), or
            file:PATH.

    Raises:
        TaskDataError: lm-eval's file is another one than was read, or the user's can't be used.
    """
    if prompt == "plain":
        return lambda problem: PLAIN.replace("{problem}", problem)
    if prompt == "lm-eval":
        return _lm_eval_math() if task == "reasoning_math500" else _lm_eval_template(*_YAMLS[task])
    template = read_template(Path(prompt.removeprefix("file:")).expanduser())
    return lambda problem: template.replace("{problem}", problem)


def read_template(path: Path) -> str:
    """Read a prompt file of the user's: a text in which `{problem}` stands for the problem, and only that.

    Raises:
        TaskDataError: It isn't there, isn't text, or doesn't say where the problem goes.
    """
    if not path.is_file():
        raise TaskDataError(f"prompt = 'file:{path}': no such file (looked for {path.absolute()}).")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskDataError(f"{path}: can't be read as text ({error}).") from None
    if text.count("{problem}") != 1:
        raise TaskDataError(
            f"{path}: expected a prompt in which {{problem}} stands once, where the problem goes; it stands "
            f"there {text.count('{problem}')} times."
        )
    return text


def template_hash(path: Path) -> str:
    """What a prompt file is known by, wherever it lies."""
    return hashlib.sha256(read_template(path).encode()).hexdigest()[:16]


def _lm_eval_template(path: str, sha256: str) -> Wording:
    import jinja2

    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(
        str(lm_eval_yaml(path, sha256=sha256)["doc_to_text"])
    )
    # Its tasks name the one field as their data sets do.
    return lambda problem: template.render(Problem=problem, problem=problem, question=problem)


def _lm_eval_math() -> Wording:
    check_sha256(package_file("lm_eval", f"tasks/{_MATH}"), _MATH_SHA256)
    made = importlib.import_module("lm_eval.tasks.minerva_math.utils").doc_to_text
    return lambda problem: str(made({"problem": problem}))
