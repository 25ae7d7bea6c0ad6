"""configs/nsa-table2.yaml: the budgets that it says, the paper's figures, and a row for each."""

from pathlib import Path

import pytest

from nsa_eval.config import load_config
from nsa_models.methods import make_method

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Table 2 of arXiv 2502.11089.
AVERAGES = {
    "H2O": 0.303,
    "InfLLM": 0.383,
    "Quest": 0.392,
    "Exact-Top": 0.423,
    "Full Attn": 0.437,
    "NSA": 0.469,
}


@pytest.fixture(scope="module")
def config():
    return load_config(CONFIGS / "nsa-table2.yaml", check_names=False)


@pytest.fixture(scope="module")
def table(config):
    [table] = config.report.tables
    return table


def methods_of(config):
    found = {}
    for variant in config.models[0].variants:
        if variant.method is not None:
            spec = variant.method
            found[variant.name] = make_method(spec.name, spec.budget, **spec.options)
    return found


def test_every_method_fixes_640_tokens_and_chooses_1920(config) -> None:
    found = methods_of(config)
    assert set(found) == {"h2o", "infllm", "quest", "exact-top"}
    for name, method in found.items():
        assert method.budget == 2560
        assert method.dense_layers == ()
        assert method.first == 128
        assert (method.recent if name == "h2o" else method.local) == 512
    # What a query at 30k reads: H2O's own token, and InfLLM's unfinished block, come on top.
    reads = {
        name: {method.stated_reads(tokens, prompt=20_000, layer=0)[1] for tokens in range(30_000, 30_128)}
        for name, method in found.items()
    }
    assert reads["h2o"] == {2561}
    assert reads["quest"] == reads["exact-top"] == {2560}
    assert (min(reads["infllm"]), max(reads["infllm"])) == (2561, 2688)
    assert found["infllm"].blocks == 15


def test_rows_and_columns_are_the_papers(config, table) -> None:
    names = {variant.name or config.models[0].name for variant in config.models[0].variants}
    assert {row.model for row in table.rows} == {*names, "nsa"}
    assert [row.header for row in table.rows] == list(AVERAGES)
    [reported] = table.reported
    assert [row.name for row in reported.rows] == list(AVERAGES)
    for row in reported.rows:
        assert list(row.values) == [column.header for column in table.columns]
        assert row.values["Avg."] == AVERAGES[row.name]


def test_published_averages_are_means_of_the_ten_columns(table) -> None:
    for row in table.reported[0].rows:
        values = [value for header, value in row.values.items() if header != "Avg."]
        assert len(values) == 10
        assert sum(values) / 10 == pytest.approx(row.values["Avg."], abs=0.00051), row.name


def test_layout_is_that_of_the_config_of_all_three_tables(table) -> None:
    whole = load_config(CONFIGS / "nsa-paper.yaml", check_names=False)
    [other] = [each for each in whole.report.tables if each.name == "longbench"]
    assert table.columns == other.columns
    assert table.reported == other.reported
