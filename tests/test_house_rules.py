"""Rules of CONTRIBUTING.md that no linter knows."""

import ast
import re
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
ROOTS = {
    "nsa_eval": HOME / "nsa_eval",
    "nsa_kernels": HOME / "kernels" / "nsa_kernels",
    "nsa_models": HOME / "models" / "nsa_models",
    "nsa_reports": HOME / "reports" / "nsa_reports",
    "nsa_settings": HOME / "models" / "nsa_settings",
    "nsa_tasks": HOME / "tasks" / "nsa_tasks",
}


def imported(tree):
    """Full names that a module imports, those inside of functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def owner_of_private(name):
    """The package that a private name belongs to, or None: a.b for a.b._c.d."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.startswith("_") and not part.startswith("__"):
            return ".".join(parts[:index])
    return None


@pytest.mark.parametrize("package", ROOTS)
def test_a_leading_underscore_is_imported_from_its_own_folder_alone(package):
    strangers = []
    for file in sorted(ROOTS[package].rglob("*.py")):
        module = ".".join((package, *file.relative_to(ROOTS[package]).with_suffix("").parts))
        for name in imported(ast.parse(file.read_text(encoding="utf-8"))):
            owner = owner_of_private(name)
            if name.split(".")[0] in ROOTS and owner is not None and not f"{module}.".startswith(f"{owner}."):
                strangers.append(f"{module} imports {name}")
    assert strangers == []


def test_the_check_sees_a_private_name_at_any_depth():
    assert owner_of_private("nsa_eval.engine._reader.Reader") == "nsa_eval.engine"
    assert owner_of_private("nsa_models.methods._attach._seam") == "nsa_models.methods"
    assert owner_of_private("nsa_eval.plan.__doc__") is None


@pytest.mark.parametrize(
    "page", ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/batches.md", "tasks/nsa_tasks/README.md"]
)
def test_files_that_a_page_names_are_there(page):
    """A name may leave out its first folders, as the pages do inside of a room."""
    files = {
        f"/{file.relative_to(HOME).as_posix()}"
        for root in (*ROOTS.values(), HOME / "tests")
        for file in root.rglob("*.py")
    }
    named = re.findall(r"`([\w./]+\.py)`", (HOME / page).read_text(encoding="utf-8"))
    assert [
        name for name in named if "NAME" not in name and not any(file.endswith(f"/{name}") for file in files)
    ] == []
