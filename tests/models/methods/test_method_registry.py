"""Methods by name, from texts, and what is refused there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import nsa_models.methods as package
from nsa_models.methods import Method, MethodError, field_types, make_method, methods, parse_method

NEW_METHOD = '''
"""A method in one file."""

from dataclasses import dataclass
from typing import Literal

from nsa_models.methods import Budgeted


@dataclass(frozen=True, kw_only=True)
class Nearest(Budgeted):
    """Reads the last keys."""

    name = "nearest"
    share: float = 0.5
    mode: Literal["a", "b"] = "a"
    strict: bool = True

    def select(self, block):
        return block.visible

    def kv_reads(self, tokens):
        return tokens
'''


@pytest.fixture
def with_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one more method beside the package's own."""
    (tmp_path / "nearest.py").write_text(NEW_METHOD)
    (tmp_path / "_helper.py").write_text("raise AssertionError('not a method')")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nsa_models.methods.nearest", raising=False)
    methods.cache_clear()
    yield tmp_path
    methods.cache_clear()
    sys.modules.pop("nsa_models.methods.nearest", None)


def test_a_file_is_a_method(with_nearest: Path) -> None:
    found = list(methods())
    assert found == sorted(found)
    assert {*found} >= {
        "exact-top",
        "nearest",
        "quest",
        "streaming-llm",
    }  # a new file changes no test of today's
    method = parse_method("nearest:1m,share=0.25,mode=b,strict=false,dense_layers=0+2")
    assert method.parameters() == {
        "budget": 1024 * 1024,
        "dense_layers": (0, 2),
        "share": 0.25,
        "mode": "b",
        "strict": False,
    }
    assert method.label == "nearest@1048576-dense_layers=0+2-share=0.25-mode=b-strict=false"


def test_a_file_without_a_method_is_named(with_nearest: Path) -> None:
    (with_nearest / "nearest.py").write_text("'''Nothing.'''")
    with pytest.raises(MethodError, match=r"methods\.nearest must define one method, got 0"):
        methods()


def test_a_name_is_given_once(with_nearest: Path) -> None:
    (with_nearest / "nearest.py").write_text(NEW_METHOD.replace('name = "nearest"', 'name = "quest"'))
    with pytest.raises(MethodError, match="'quest' is defined twice"):
        methods()


def test_texts_are_read() -> None:
    assert parse_method(" quest:2560 ") == make_method("quest", 2560)
    assert parse_method("quest:4k, reading=kernel,page=32") == make_method(
        "quest", 4096, reading="kernel", page=32
    )
    assert make_method("quest", "2k", page="8", dense_layers=[0]).parameters()["dense_layers"] == (0,)
    assert parse_method("quest:64,dense_layers=none").label == "quest@64-dense_layers=none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "quset:2560",
            r"unknown method 'quset', did you mean quest\? \(known: .*exact-top, .*streaming-llm, .*\)",
        ),
        ("zzzz:1", r"unknown method 'zzzz' \(known: "),
        ("quest", r"NAME:BUDGET\[,OPTION=VALUE...\], such as quest:2560,page=16; got 'quest'"),
        ("quest:page=16", "NAME:BUDGET"),
        (":2560", "NAME:BUDGET"),
        ("quest:2560,page", "'page' isn't OPTION=VALUE"),
        (
            "quest:2560,pages=16",
            r"quest: unknown option 'pages', did you mean page\? \(known: dense_layers, fast, page, ",
        ),
        ("quest:2560,page=16,page=8", "quest: page is given twice"),
        ("quest:2560,budget=8", "quest: budget is given twice"),
        ("quest:2.5k", "quest: budget must be a whole number such as 512 or \"4k\", got '2.5k'"),
        ("quest:-5", "quest: budget must be a whole number"),
        (
            "quest:2560,dense_layers=1+0",
            r"quest: dense_layers must be rising layer numbers from 0, got \(1, 0\)",
        ),
        ("quest:2560,reading=Eval", "quest: reading must be one of eval, kernel, got 'Eval'"),
        ("exact-top:0,first=0,local=0", "exact-top: budget must be at least 1 KV token, got 0"),
        ("quest:", "NAME:BUDGET"),
        (
            "xattention:2560",
            "xattention has no budget, got '2560': how much it reads follows from tau; "
            r"write xattention:tau=0\.9",
        ),
        ("xattention:2560,tau=0.8", "xattention has no budget"),
        ("xattention:budget=8", "xattention has no budget, got '8'"),
        ("xattention:", r"xattention is written NAME\[:OPTION=VALUE...\], such as xattention:tau=0\.9; got"),
        ("xattention:tau=0.9,tau=0.8", "xattention: tau is given twice"),
        ("xattention:tau=inf", "xattention: tau must be a finite number, got inf"),
        ("xattention:tau=nan", "xattention: tau must be a finite number, got nan"),
        ("xattention:tau=much", "xattention: tau must be a number, got 'much'"),
        (
            "flexprefill:4k",
            r"follows from gamma and least; write flexprefill:gamma=0\.9,least=1024",
        ),
    ],
)
def test_unreadable_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        parse_method(text)


def test_methods_without_a_budget_are_read() -> None:
    assert parse_method("xattention") == make_method("xattention")
    assert parse_method(" xattention:tau=.8, stride=8") == make_method("xattention", tau=0.8, stride=8)
    assert parse_method("xattention:tau=.8,stride=8").label == "xattention@tau=0.8-stride=8"
    # One label and one record, however a number is written.
    whole, text = make_method("xattention", tau=1), parse_method("xattention:tau=1")
    assert whole.label == text.label == "xattention@tau=1.0"
    assert whole.describe() == text.describe()
    assert "budget" not in whole.describe()["parameters"]


def test_a_budget_is_asked_for_where_there_is_one() -> None:
    with pytest.raises(MethodError, match="quest: a budget is missing: KV tokens read per decoded query"):
        make_method("quest")


def test_a_misspelt_budget_is_told_as_such() -> None:
    with pytest.raises(MethodError, match="quest: unknown option 'budgets', did you mean budget"):
        make_method("quest", budgets=512)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("page", 2.0, "a whole number"),
        ("page", True, "a whole number"),
        ("dense_layers", ("0",), "a list of whole"),
    ],
)
def test_values_of_another_type_are_refused(field: str, value: object, wanted: str) -> None:
    with pytest.raises(MethodError, match=f"quest: {field} must be {wanted}"):
        make_method("quest", 2560, **{field: value})


def test_fields_are_listed_with_their_types() -> None:
    kinds = field_types(methods()["quest"])
    assert list(kinds) == ["budget", "dense_layers", "fast", "page", "reading", "first", "local"]
    assert kinds["page"] is int


def test_records_tell_variants_apart() -> None:
    one, two = make_method("quest", 2560), make_method("quest", 2560, reading="kernel")
    assert one.describe() != two.describe()
    assert one.describe()["parameters"] == {
        "budget": 2560,
        "dense_layers": [0, 1],
        "fast": False,
        "page": 16,
        "reading": "eval",
        "first": 0,
        "local": 0,
    }
    assert one.describe()["declarations"]["phase"] == "decode"
    assert isinstance(one, Method)
