"""The section of scores by position: what is split into buckets, and intervals paired by document."""

import math

import pytest

from nsa_eval.comparison import compare, to_table
from nsa_eval.material import Material
from nsa_eval.results import load_run
from nsa_eval.sections import build_page, heatmaps, positions, tasks
from nsa_eval.tables import scores_csv
from nsa_reports import charts_of, to_html

ENDS = [64, 128]
# Of two documents, nats a token up to 64 and from there to 128: worked out by hand below.
NSA = [(3.0, 2.0), (5.0, 4.0)]
DENSE = [(2.5, 2.5), (3.5, 4.0)]


def samples(sample_line, values, ends=ENDS):
    return [
        sample_line(
            {"id": number, "buckets": ends},
            {
                "nll": sum(of) / len(of),
                "bits_per_byte": sum(of) / len(of) / 2,
                **{f"nll@{end}": value for end, value in zip(ends, of, strict=True)},
                **{f"bits_per_byte@{end}": value / 2 for end, value in zip(ends, of, strict=True)},
            },
        )
        for number, of in enumerate(values)
    ]


@pytest.fixture
def write(tmp_path, write_model, sample_line):
    def made(runs, metadata=None):
        lower = {m: False for n in ("nll", "bits_per_byte") for m in (n, *(f"{n}@{end}" for end in ENDS))}
        config = {
            "metadata": {"version": 1.0, "buckets": ENDS, "protocol": "by position", **(metadata or {})}
        }
        for name, values in runs.items():
            write_model(
                tmp_path,
                name,
                {"ppl": samples(sample_line, values)},
                config=config,
                higher_is_better={"ppl": lower},
            )
        return load_run(tmp_path)

    return made


def test_points_are_means_over_documents_with_their_intervals(write):
    run = write({"nsa": NSA, "dense": DENSE})
    data = positions.build(Material(run, compare(run, baseline="dense")))
    [task] = data.tasks
    nll, bits = task.groups
    assert (nll.metric, nll.unit, bits.metric, bits.unit) == (
        "nll",
        "nats a token",
        "bits_per_byte",
        "bits a byte",
    )
    nsa = next(curve for curve in nll.curves if curve.model == "nsa")
    assert [(point.end, point.value) for point in nsa.points] == [(64, 4.0), (128, 3.0)]
    # A bootstrap of two documents draws the first twice, one of each, or the second twice: 1/4, 1/2, 1/4.
    assert [(point.low, point.high) for point in nsa.points] == [(3.0, 5.0), (2.0, 4.0)]
    [difference] = nll.differences
    assert (difference.candidate, difference.baseline) == ("nsa", "dense")
    # +0.5 and +1.5 on the two documents up to 64; -0.5 and 0 behind.
    assert [(point.value, point.low, point.high) for point in difference.points] == [
        (1.0, 0.5, 1.5),
        (-0.25, -0.5, 0.0),
    ]
    assert [point.value for point in bits.differences[0].points] == [0.5, -0.125]


def test_buckets_are_sub_rows_of_their_metric_and_not_rows_of_the_table(write):
    run = write({"nsa": NSA, "dense": DENSE})
    comparison = compare(run, baseline="dense")
    assert [row.metric for row in comparison.rows] == ["nll", "bits_per_byte"]
    row = comparison.rows[0]
    assert [(sub.length, sub.difference, sub.n) for sub in row.lengths] == [(64, 1.0, 2), (128, -0.25, 2)]
    assert row.difference == pytest.approx(0.375)
    # Losses and wins are documents: a lower value is better.
    assert [(sub.wins, sub.losses) for sub in row.lengths] == [(0, 2), (1, 0)]
    assert {sub.family for sub in row.lengths} == {2}
    lines = to_table(comparison, "csv").splitlines()
    assert sum(",64," in line for line in lines) == 2


def test_the_page_draws_both_and_lists_the_task_nowhere_else(write):
    run = write({"nsa": NSA, "dense": DENSE})
    material = Material(run, compare(run, baseline="dense"))
    assert (tasks.build(material), heatmaps.build(material)) == (None, None)
    html = to_html(build_page(material))
    assert html.count('<figure class="chart">') == 4
    assert "up to 64: +1.000 [+0.500, +1.50]" in html or "up to 64: +1.00 [+0.500, +1.50]" in html
    assert f"{math.exp(4.0):,.4g} [{math.exp(3.0):,.4g}, {math.exp(5.0):,.4g}]" in html  # perplexity


def test_a_runs_table_of_scores_has_a_line_for_each_bucket(write):
    lines = scores_csv(Material(write({"nsa": NSA}))).splitlines()
    found = [line.split(",")[2:7] for line in lines[1:]]
    assert found[:3] == [
        ["nll", "nsa", "3.5", "2.5", "4.5"],
        ["nll@64", "nsa", "4.0", "3.0", "5.0"],
        ["nll@128", "nsa", "3.0", "2.0", "4.0"],
    ]
    assert len(found) == 6


def test_one_model_alone_has_its_curve_and_no_differences(write):
    data = positions.build(Material(write({"nsa": NSA})))
    [part] = data.parts
    assert [len(view.charts) for view in part.views] == [1, 1]
    assert part.documents == "2 documents"


def test_nothing_is_shown_where_no_task_is_split(tmp_path, write_model, scored):
    write_model(tmp_path, "m", {"t": scored([1.0, 0.0])})
    assert positions.build(Material(load_run(tmp_path))) is None


def test_a_metric_of_replies_is_no_bucket(tmp_path, write_model, sample_line):
    """`pass@8` is a score of eight replies: only what the task lists under `buckets` is a position."""
    lines = [sample_line({"id": n}, {"pass": 1.0, "pass@8": 1.0, "pass@64": 0.0}) for n in range(3)]
    config = {"metadata": {"version": 1.0}}
    write_model(tmp_path, "m", {"t": lines}, config=config)
    material = Material(load_run(tmp_path))
    assert positions.build(material) is None
    assert [metric for metric, _ in material.figures.metrics("t")] == ["pass", "pass@8", "pass@64"]


def test_figures_for_papers_are_written_once_a_metric(write, tmp_path):
    from nsa_eval.report import render_report

    write({"nsa": NSA, "dense": DENSE})
    render_report(tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {
        f"ppl-{metric}.{end}" for metric in ("nll", "bits_per_byte") for end in ("png", "svg", "pdf")
    }
    again = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    render_report(tmp_path)
    assert again == {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}


def test_charts_stay_inside_of_their_axes(write):
    run = write({"nsa": NSA, "dense": DENSE})
    data = positions.build(Material(run, compare(run, baseline="dense")))
    for group in data.tasks[0].groups:
        for chart in charts_of(group):
            for line in chart.lines:
                for points in (line.points, *line.bands):
                    for x, y in (map(float, pair.split(",")) for pair in points.split()):
                        assert chart.left <= x <= chart.right
                        assert chart.top <= y <= chart.bottom
