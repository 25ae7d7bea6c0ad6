"""A model family is one file: it is found by it, at its place."""

import sys
from pathlib import Path

import pytest

import nsa_models.families as package
from nsa_models.families import by_ability, family_of

from .test_families_probe import tiny

NEW_FAMILY = """
from nsa_models.families.equal_rows import EqualRowsFamily

ORDER = 5


class Careful(EqualRowsFamily):
    name = "careful"


def candidates(model, declared):
    yield Careful(model)
"""


@pytest.fixture
def with_careful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one more family beside the package's own."""
    (tmp_path / "careful.py").write_text(NEW_FAMILY)
    (tmp_path / "_helper.py").write_text("raise AssertionError('not a family')")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("nsa_models.families.careful", None)


def test_todays_families_are_tried_in_this_order() -> None:
    today = ("full_attention", "equal_rows", "recurrent", "own_cache")
    assert [name for name in by_ability() if name in today] == list(today)


def test_a_file_is_a_family_at_its_place(with_careful: Path) -> None:
    assert next(iter(by_ability())) == "careful"
    assert family_of(tiny("llama")).name == "careful"


def test_a_file_without_its_place_is_named(with_careful: Path) -> None:
    (with_careful / "careful.py").write_text(NEW_FAMILY.replace("ORDER = 5", ""))
    with pytest.raises(TypeError, match=r"families\.careful: the file of a model family needs candidates"):
        by_ability()
