"""Tables in a paper's layout: the run's scores, means over columns, and figures that others published."""

import csv
import io

import pytest
import yaml

from nsa_eval.config import ColumnSpec, load_config
from nsa_eval.errors import ConfigError
from nsa_eval.material import Material
from nsa_eval.report import render_report
from nsa_eval.tables import fill_tables, scores_csv, scores_markdown, written_table

TABLE = {
    "name": "paper",
    "title": "Long texts",
    "columns": [
        {"header": "MFQA-en", "group": "One document", "task": "en"},
        {"header": "Qasper", "group": "One document", "task": "qasper"},
        {"header": "LCC", "group": "Code", "task": "lcc"},
        {"header": "Avg.", "mean": "all"},
        {"header": "QA", "mean": ["MFQA-en", "Qasper"]},
    ],
    "rows": [{"model": "nsa", "header": "NSA"}, {"model": "dense", "header": "Full"}],
    "reported": [
        {
            "source": "arXiv 2502.11089, table 2",
            "rows": [
                {"name": "Full", "values": {"MFQA-en": 0.503, "Avg.": 0.437}},
                {"name": "H2O", "values": {"Avg.": 0.303}},
            ],
        }
    ],
    "scale": "fraction",
}


@pytest.fixture
def run(tmp_path, write_model, scored):
    """Two models with three tasks; the second lacks one of them."""

    def make(table=TABLE, **tasks):
        for name, right in (("dense", (6, 5, 2)), ("nsa", (8, 5, 4))):
            found = {
                task: scored([1.0] * n + [0.0] * (10 - n), length=[512] * 5 + [1024] * 5)
                for task, n in zip(("en", "qasper", "lcc"), right, strict=True)
            } | tasks
            if name == "dense":
                del found["qasper"]
            write_model(tmp_path, name, found, config={"metadata": {"version": 1, "data_hash": "data:00_1"}})
        (tmp_path / "run.yaml").write_text(
            yaml.safe_dump(
                {
                    "models": [{"name": "dense", "path": "d"}, {"name": "nsa", "path": "n"}],
                    "report": {"tables": [table]},
                }
            )
        )
        return tmp_path

    return make


def filled(folder):
    [table] = fill_tables(Material(folder))
    return table


def values(row):
    return [None if cell is None else round(cell.value, 4) for cell in row.cells]


def test_rows_are_models_and_columns_are_scores_and_means(run):
    table = filled(run())
    nsa, full = table.own
    assert (nsa.name, values(nsa)) == ("NSA", [0.8, 0.5, 0.4, round(1.7 / 3, 4), 0.65])
    # A mean without one of its columns would be the mean of another suite.
    assert (full.name, values(full)) == ("Full", [0.6, None, 0.2, None, None])
    assert table.groups == (("One document", 2), ("Code", 1), ("", 2))
    assert [column.n for column in table.columns] == ["10", "10", "10", "", ""]
    low, high = nsa.cells[0].low, nsa.cells[0].high
    assert 0.4 < low < 0.8 < high < 1.0
    assert nsa.cells[3].low is None


def test_published_figures_are_kept_as_they_are_and_marked(run):
    table = filled(run())
    [(source, rows)] = table.reported
    assert source == "arXiv 2502.11089, table 2"
    assert values(rows[0]) == [0.503, None, None, 0.437, None]
    text = written_table(table, "md")
    assert "| Full (reported: arXiv 2502.11089, table 2) | 0.503 | - | - | 0.437 | - |" in text
    assert "Reported figures are as their source prints them, not measured here." in text


def test_markdown_says_of_each_column_where_it_comes_from(run):
    lines = written_table(filled(run()), "md").splitlines()
    assert lines[2] == "| model | One document: MFQA-en | One document: Qasper | Code: LCC | Avg. | QA |"
    assert any(line.startswith("| NSA | 0.800 \\[0.") for line in lines)
    assert "| n | 10 | 10 | 10 |  |  |" in lines
    assert "| Code: LCC | score |  | data:00\\_1 | cuts not recorded | 10 |" in lines
    assert "| Avg. | mean of MFQA-en, Qasper, LCC |  |  |  |  |" in lines


def test_latex_is_booktabs_with_groups_over_the_columns(run):
    text = written_table(filled(run({**TABLE, "intervals": False})), "tex")
    assert text.split("\\begin{tabular}")[1] == (
        "{lrrrrr}\n\\toprule\n"
        "& \\multicolumn{2}{c}{One document} & \\multicolumn{1}{c}{Code} & \\multicolumn{2}{c}{} \\\\\n"
        "\\cmidrule(lr){2-3}\\cmidrule(lr){4-4}\n"
        "& MFQA-en & Qasper & LCC & Avg. & QA \\\\\n\\midrule\n"
        "{NSA} & 0.800 & 0.500 & 0.400 & 0.567 & 0.650 \\\\\n"
        "{Full} & 0.600 & -- & 0.200 & -- & -- \\\\\n\\midrule\n"
        "\\multicolumn{6}{l}{\\emph{Reported: arXiv 2502.11089, table 2}} \\\\\n"
        "{Full} & 0.503 & -- & -- & 0.437 & -- \\\\\n"
        "{H2O} & -- & -- & -- & 0.303 & -- \\\\\n\\midrule\n"
        "$n$ & 10 & 10 & 10 &  &  \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
    assert r"% LCC: score; data:00\_1; cuts not recorded; n = 10" in text


def test_csv_has_a_line_for_each_figure_at_full_precision(run):
    rows = list(csv.DictReader(io.StringIO(written_table(filled(run()), "csv"))))
    assert len(rows) == 4 * 5
    mean = next(row for row in rows if (row["row"], row["column"]) == ("NSA", "Avg."))
    assert float(mean["value"]) == pytest.approx(1.7 / 3, abs=1e-9)
    one = next(row for row in rows if (row["row"], row["column"]) == ("NSA", "LCC"))
    assert (one["n"], one["data"], one["source"], one["group"]) == ("10", "data:00_1", "", "Code")
    assert {row["data"] for row in rows if row["source"]} == {""}


def test_points_lengths_and_digits(run):
    columns = [{"header": name, "task": "en", "length": name} for name in ("512", "1k")]
    table = {"name": "lengths", "columns": columns, "digits": 2}
    made = filled(run(table))
    assert [[made.text(cell) for cell in row.cells] for row in made.own] == [
        ["100.00", "20.00"],
        ["100.00", "60.00"],
    ]
    assert [row.name for row in made.own] == ["dense", "nsa"]
    assert [column.n for column in made.columns] == ["5", "5"]


def test_a_groups_column_has_its_length_too(tmp_path, write_model, scored):
    tasks = {
        name: scored([float(x) for x in right], length=[512, 512, 1024, 1024])
        for name, right in (("one", (1, 1, 0, 0)), ("two", (1, 0, 1, 0)))
    }
    results = {name: {"score,none": 0.5, "sample_len": 4} for name in tasks}
    write_model(
        tmp_path, "m", tasks, results={**results, "suite": {"score,none": 0.5}},
        group_subtasks={"suite": ["one", "two"]},
    )  # fmt: skip
    columns = [{"header": str(n), "task": "suite", "length": n} for n in (512, 1024)]
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"report": {"tables": [{"name": "t", "columns": columns}]}})
    )
    [row] = filled(tmp_path).own
    assert values(row) == [75.0, 25.0]


def test_a_mean_of_scores_and_perplexities_is_none(run, scored):
    rows = scored([3.0, 4.0], "perplexity")
    columns = [
        {"task": "en"},
        {"task": "ppl"},
        {"header": "both", "mean": "all"},
        {"header": "same", "mean": ["en"]},
    ]
    table = filled(run({"name": "t", "columns": columns}, ppl=rows))
    assert values(table.own[1]) == [80.0, 3.5, None, 80.0]


def test_a_runs_report_shows_and_writes_them(run):
    folder = run()
    page = render_report(folder).read_text()
    assert sorted(file.name for file in (folder / "tables").iterdir()) == [
        *("paper.csv", "paper.md", "paper.tex", "scores.csv", "scores.md"),
    ]
    assert "Reported: arXiv 2502.11089, table 2" in page
    assert '<th scope="colgroup" colspan="2" class="over">One document</th>' in page
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    render_report(folder, out=elsewhere / "page.html")
    assert [file.name for file in elsewhere.iterdir()] == ["page.html"]


def test_every_score_of_a_run_is_in_one_table_with_its_origin(tmp_path, write_model, scored):
    tasks = {"one": scored([1.0, 0.0]), "two": scored([3.0, 5.0], "perplexity"), "three": scored([1.0, 1.0])}
    results = {name: {"score,none": 0.5} for name in ("one", "three")} | {"two": {"perplexity,none": 4.0}}
    results |= {"one": {"score,none": 0.5}, "three": {"score,none": 1.0}, "suite": {"score,none": 0.75}}
    write_model(
        tmp_path, "m", tasks, results=results, group_subtasks={"suite": ["one", "three"]},
        config={"metadata": {"version": 1, "protocol": "official", "data_hash": "data:00"}},
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(scores_csv(Material(tmp_path)))))
    assert [
        (row["task"], row["depth"], row["metric"], row["value"], row["unit"], row["n"]) for row in rows
    ] == [
        ("suite", "0", "score", "75.0", "points", "4"),
        ("one", "1", "score", "50.0", "points", "2"),
        ("three", "1", "score", "100.0", "points", "2"),
        ("two", "0", "perplexity", "4.0", "raw", "2"),
    ]
    assert {(row["protocol"], row["truncation"]) for row in rows} == {("official", "cuts not recorded")}
    text = scores_markdown(Material(tmp_path))
    assert (
        "| &nbsp;&nbsp;one | score | m | 50.0 \\[9.5, 90.5\\] | 2 | official | data:00 | cuts not recorded |"
        in text
    )
    assert "| two | perplexity | m | 4 " in text


def test_hostile_names_stay_text(run):
    hostile = "=x\\input{y}|<b>&_"
    table = {**TABLE, "title": hostile, "rows": [{"model": "nsa", "header": hostile}]}
    table["columns"] = [{"header": hostile, "group": hostile, "task": "en"}]
    table["reported"] = [{"source": hostile, "rows": [{"name": hostile, "values": {hostile: 1.0}}]}]
    made = filled(run(table))
    tex = written_table(made, "tex")
    assert "\\input{y}" not in "".join(line for line in tex.splitlines() if not line.startswith("%"))
    assert "<b>" not in written_table(made, "md")
    assert "\n=x" not in written_table(made, "csv")
    assert "|<b>&" not in render_report(run(table)).read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": [{"task": "needle_singel"}]}, "columns[0].task: no task of this run is named"),
        ({"columns": [{"header": "x"}]}, "columns[0]: a column shows a task, or the mean of other columns"),
        (
            {"columns": [{"task": "needle_single"}, {"task": "needle_single"}]},
            "columns: 2 columns are called 'needle_single'",
        ),
        (
            {"columns": [{"header": "m", "mean": ["a"]}, {"header": "a", "task": "needle_single"}]},
            "columns[0].mean: no column before it is called 'a'",
        ),
        (
            {"columns": [{"task": "needle_single"}, {"header": "m", "mean": "all", "length": "1k"}]},
            "columns[1].mean: a mean has the metrics and lengths of its columns",
        ),
        ({"rows": [{"model": "tow"}]}, "rows[0].model: no model is named 'tow'; did you mean 'two'?"),
        (
            {"reported": [{"source": "s", "rows": [{"name": "n", "values": {"needle": 1.0}}]}]},
            "reported[0].rows[0].values.needle: no column is called 'needle'; did you mean 'needle_single'?",
        ),
        ({"colums": []}, "colums: unknown key; did you mean 'columns'?"),
    ],
)
def test_names_that_stand_for_nothing_are_told(tiny_config, changes, message):
    table = {"name": "t", "columns": [{"task": "needle_single"}], **changes}
    with pytest.raises(ConfigError) as caught:
        load_config(tiny_config(report={"tables": [table]}))
    assert f"report.tables[0].{message}" in str(caught.value)


def test_two_tables_of_one_name_would_write_over_each_other(tiny_config):
    table = {"name": "t", "columns": [{"task": "needle_single"}]}
    with pytest.raises(ConfigError, match=r"report\.tables\[1\]\.name: 'T' is the name of another table"):
        load_config(tiny_config(report={"tables": [table, {**table, "name": "T"}]}))


@pytest.mark.parametrize(("given", "read"), [(0, 0), ("0", 0), ("4k", 4096), (4000, 4000)])
def test_a_column_may_be_of_documents_without_context(given, read):
    assert ColumnSpec(task="babilong", length=given).length == read


@pytest.mark.parametrize("given", [-1, False, "0k", 0.5])
def test_what_is_no_length_is_none_of_a_column(given):
    with pytest.raises(ValueError, match="expected a length in tokens"):
        ColumnSpec(task="babilong", length=given)
