"""A finished run's figures as tables for cards."""

import card_figures
import pytest


def table(text, first):
    """Cells of the table whose first cell is `first`, by the first cell of each line."""
    [part] = [part for part in text.split("\n\n") if part.startswith(f"| {first} |")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
    return {line[0]: line[1:] for line in lines if line[0] != "---"}


@pytest.fixture
def grid(tmp_path, write_model, scored):
    places = {"length": [512] * 4 + [2048] * 4, "depth": [0.0, 0.0, 100.0, 100.0] * 2}
    write_model(tmp_path / "r", "dense", {"needle": scored([1.0] * 8, **places)})
    write_model(tmp_path / "r", "nsa", {"needle": scored([1.0] * 4 + [0.0, 1.0, 0.0, 0.0], **places)})
    return card_figures.figures([tmp_path / "r"])


def test_a_grid_is_told_by_length_with_intervals_and_differences(grid):
    found = table(grid, "needle, %")
    assert found["needle, %"] == ["512", "2,048"]
    assert found["documents"] == ["4", "4"]
    assert found["dense"] == ["100 [51, 100]"] * 2
    assert found["nsa"] == ["100 [51, 100]", "25 [4.6, 69.9]"]  # Wilson's, of 1 in 4
    [pair] = [name for name in found if " - " in name]
    assert found[pair][1].startswith("-75 [" if pair == "nsa - dense" else "+75 [")


def test_a_grid_is_told_by_depth(grid):
    found = table(grid, "needle, %, nsa")
    assert found["0 % deep"] == ["100", "50"]
    assert found["100 % deep"] == ["100", "0"]


def test_positions_have_nats_and_perplexities(tmp_path, write_model, make_positions):
    for name, nats in (("dense", 2.0), ("nsa", 2.5)):
        write_model(
            tmp_path / "p", name, {"books": make_positions(nats)}, config={"metadata": {"buckets": [64, 128]}}
        )
    text = card_figures.figures([tmp_path / "p"])
    nats = table(text, "books, nats a token, up to")
    assert [cell.split()[0] for cell in nats["nsa"]] == ["2.500", "1.500"]
    perplexities = table(text, "books, perplexity, up to")
    assert [cell.split()[0] for cell in perplexities["nsa"]] == ["12.18", "4.48"]
    assert [cell.split()[0] for cell in perplexities["dense"]] == ["7.39", "2.72"]


@pytest.fixture
def make_positions(scored):
    def make(nats):
        rows = scored([nats] * 3, "nll")
        for index, row in enumerate(rows):
            row |= {"nll@64": nats + 0.1 * (index - 1), "nll@128": nats - 1 + 0.1 * (index - 1)}
            row["metrics"] = ["nll", "nll@64", "nll@128"]
        return rows

    return make


def test_no_folder_of_a_run_is_a_plain_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        card_figures.main([str(tmp_path)])
    assert left.value.code == 2
    assert "not a run directory" in capsys.readouterr().err
