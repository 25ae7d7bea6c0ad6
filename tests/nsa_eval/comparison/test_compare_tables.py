"""Comparisons as tables: the same numbers in every format, and names that try to break out."""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nsa_eval.comparison import Comparison, compare, to_table
from nsa_eval.comparison._format import format_p, format_score
from nsa_eval.errors import UserError

HOSTILE = r"x_1 & 50% $a^b$ #{~} \input{y} <b>|*`[l](u)"


@pytest.fixture
def comparison(tmp_path: Path, write_model: Any, scored: Any) -> Comparison:
    grid = {"length": [512] * 12 + [2048] * 12, "depth": [0.0, 50.0] * 12}
    write_model(
        tmp_path,
        "nsa",
        {"needle": scored([1.0] * 24, **grid), "ppl": scored([2.0] * 23 + [3.0], "perplexity")},
    )
    write_model(
        tmp_path,
        "dense",
        {"needle": scored([1.0] * 12 + [0.0] * 12, **grid), "ppl": scored([2.5] * 24, "perplexity")},
    )
    return compare(tmp_path, baseline="dense", resamples=500)


def printed(comparison: Comparison, width: int, **options: Any) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(to_table(comparison, "table", **options))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_shows_scores_difference_p_and_verdict(comparison: Comparison, width: int) -> None:
    text = printed(comparison, width)
    assert max(map(len, text.splitlines())) <= width
    for piece in (
        "needle",
        "100.0",
        "50.0",
        "+50.0",
        "12/0",
        "better",
        "512",
        "2k",
        "0.001",
        "not distinguishable",
    ):
        assert piece in text, piece


def test_sub_rows_can_be_left_out(comparison: Comparison) -> None:
    assert "2k" not in printed(comparison, 200, lengths=False)
    assert "at 2k" not in to_table(comparison, "md", lengths=False)
    assert "at 2k" in to_table(comparison, "md")


def test_markdown_is_a_table_with_notes_and_method(comparison: Comparison) -> None:
    text = to_table(comparison, "md")
    header, rule, first, *_ = text.splitlines()
    assert header.count("|") == rule.count("|") == first.count("|")
    assert "McNemar" in text
    assert "not distinguishable (differences under" in text


def test_latex_is_balanced_booktabs(comparison: Comparison) -> None:
    text = to_table(comparison, "latex")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + 4
    assert len({line.count(" & ") for line in body}) == 1
    for piece in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\begin{tabular}",
        r"\end{tabular}",
        r"\quad 2k",
        "$+$50.0",
    ):
        assert piece in text, piece


def test_csv_holds_every_row_in_its_unit(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(to_table(comparison, "csv"))))
    assert [(row["task"], row["length"], row["unit"]) for row in rows] == [
        ("needle", "", "points"),
        ("needle", "512", "points"),
        ("needle", "2048", "points"),
        ("ppl", "", "raw"),
    ]
    assert float(rows[0]["difference"]) == 50.0
    assert float(rows[0]["p"]) == pytest.approx(2 / 4096)
    assert float(rows[3]["baseline_mean"]) == 2.5
    # 24 equal values of a score without bounds: no interval can be given.
    assert rows[3]["baseline_low"] == ""


def test_json_reads_back(comparison: Comparison) -> None:
    assert Comparison.model_validate(json.loads(to_table(comparison, "json"))) == comparison


def test_json_and_csv_hold_the_same_numbers_in_the_same_unit(comparison: Comparison) -> None:
    written = json.loads(to_table(comparison, "json"))
    rows = [sub for row in written["rows"] for sub in (row, *row["lengths"])]
    table = list(csv.DictReader(io.StringIO(to_table(comparison, "csv"))))
    assert len(rows) == len(table) == 4
    for row, line in zip(rows, table, strict=True):
        assert row["unit"] == line["unit"]
        assert row["difference"] == pytest.approx(float(line["difference"]), abs=1e-10)
        assert row["interval"]["low"] == pytest.approx(float(line["low"]), abs=1e-10)
        assert row["baseline_score"]["mean"] == pytest.approx(float(line["baseline_mean"]), abs=1e-10)
        if row["minimum_detectable"] is not None:
            assert row["minimum_detectable"] == pytest.approx(float(line["minimum_detectable"]), abs=1e-10)
    assert (rows[0]["difference"], comparison.rows[0].difference) == (50.0, 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_any_score_survives_json(tmp_path: Path, write_model: Any, scored: Any, seed: int) -> None:
    rng = random.Random(seed)
    for name in ("a", "b"):
        write_model(tmp_path, name, {"t": scored([rng.random() for _ in range(7)], "f1")})
    comparison = compare(tmp_path, baseline="b", resamples=100)
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison
    assert Comparison.model_validate(comparison.model_dump()) == comparison


def test_few_documents_are_said_to_be_few(tmp_path: Path, write_model: Any, scored: Any) -> None:
    """0 against 100 % of three: no outcome of three documents is significant."""
    write_model(tmp_path, "a", {"t": scored([1.0] * 3), "u": scored([1.0] * 24)})
    write_model(tmp_path, "b", {"t": scored([0.0] * 3), "u": scored([1.0] * 24)})
    comparison = compare(tmp_path, baseline="b", resamples=100)
    few, many = comparison.rows
    assert (few.too_few_documents, few.difference) == (True, 1.0)
    assert not many.too_few_documents
    assert "not distinguishable (too few documents to see any difference)" in to_table(comparison, "md")
    for width in (80, 200):
        assert printed(comparison, width).count("too few documents") == 1
    assert "too few documents" in to_table(comparison, "latex")


@pytest.mark.parametrize("width", [80, 200])
def test_lengths_of_one_document_fold_where_they_say_the_same(
    tmp_path: Path, write_model: Any, scored: Any, width: int
) -> None:
    lengths = [512, 1024, 2048, 4096, 8192]
    for name, scores in (("a", [1.0] * 5), ("b", [1.0, 1.0, 0.0, 0.0, 1.0])):
        task = scored(scores, length=lengths, depth=[50.0] * 5)
        write_model(tmp_path, name, {"t": task, "u": task})
    comparison = compare(tmp_path, baseline="b", resamples=100)
    text = printed(comparison, width)
    for name, difference in (("512 to 1k", " 0.0 "), ("2k to 4k", " +100.0 "), ("8k", " 0.0 ")):
        [line, _] = [shown for shown in text.splitlines() if shown.lstrip().startswith(name)]
        assert "too few documents" in line
        assert "[" not in line, "one document has no interval"
        assert difference in line
    assert text.count("1 each") == 4
    assert " ".join(text.split()).count("Too few documents: no difference could be seen.") == 1
    assert "at 1k" in to_table(comparison, "md"), "files have every row"


def test_notes_that_say_the_same_of_several_tasks_are_one(comparison: Comparison) -> None:
    notes = ["t, f1: only 2 documents; be careful", "u, f1: only 2 documents; be careful", "v: odd", "odd"]
    text = printed(comparison.model_copy(update={"notes": notes}), 200)
    assert [line for line in text.splitlines() if line.startswith("Note")] == [
        "Note: t, f1; u, f1: only 2 documents; be careful",
        "Note: v: odd",
        "Note: odd",
    ]


def test_unknown_format(comparison: Comparison) -> None:
    with pytest.raises(UserError, match="unknown table format 'xlsx'; one of: table, md, latex, csv, json"):
        to_table(comparison, "xlsx")


def _renamed(comparison: Comparison, task: str, model: str) -> Comparison:
    text = (
        comparison.model_dump_json().replace('"needle"', json.dumps(task)).replace('"nsa"', json.dumps(model))
    )
    return Comparison.model_validate_json(text)


def test_hostile_names_stay_text(comparison: Comparison) -> None:
    hostile = _renamed(comparison, HOSTILE, "=cmd()\x1b[31m\n| new")
    tex = to_table(hostile, "latex")
    assert r"x\_1 \& 50\% \$a\textasciicircum{}b\$ \#\{\textasciitilde{}\} \textbackslash{}input\{y\}" in tex
    assert r"\input{" not in tex
    md = to_table(hostile, "md")
    assert "<b>" not in md
    for table in md.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1
    rows = list(csv.reader(io.StringIO(to_table(hostile, "csv"))))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert all(not cell.startswith("=") for row in rows for cell in row)
    assert "\x1b" not in md + tex + printed(hostile, 120)
    assert "[l](u)" in printed(hostile, 250)


def test_several_candidates_are_named_in_their_rows(tmp_path: Path, write_model: Any, scored: Any) -> None:
    for name in ("a", "b", "c"):
        write_model(tmp_path, name, {"t": scored([1, 0])})
    comparison = compare(tmp_path, baseline="b", resamples=200)
    assert "t: a" in printed(comparison, 200)
    assert "t: c" in printed(comparison, 80)
    assert to_table(comparison, "md").splitlines()[2].startswith("| t | a | 2 |")
    assert r"t & c & 2 &" in to_table(comparison, "latex")


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "<0.001"), (0.00099, "<0.001"), (0.001, "0.001"), (0.0462, "0.046"), (1, "1.000")]
)
def test_p_values(p: float, text: str) -> None:
    assert format_p(p) == text


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.931, False, "93.1"),
        (-0.025, True, "-2.5"),
        (0.025, True, "+2.5"),
        (-0.0001, True, "0.0"),
        (-0.2, False, "-20.0"),
    ],
)
def test_points(comparison: Comparison, value: float, signed: bool, text: str) -> None:
    assert format_score(value, comparison.rows[0], signed=signed) == text
