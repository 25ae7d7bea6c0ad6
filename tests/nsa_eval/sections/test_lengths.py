"""The section by length: means over tasks, thresholds, effective lengths."""

import pytest

from nsa_eval.material import Material
from nsa_eval.report import render_report
from nsa_eval.results import load_run
from nsa_eval.sections import lengths
from nsa_eval.sections.lengths import build
from nsa_tasks import families

RULER = {"metadata": {"version": 1.0, "family": "ruler", "protocol": "official"}}
THRESHOLD = 0.856


def samples_of(scored, by_length):
    """Documents of several lengths with their scores."""
    return scored(
        [score for scores in by_length.values() for score in scores],
        "score",
        length=[length for length, scores in by_length.items() for _ in scores],
    )


def built(tmp_path, write_model, scored, models, config=RULER):
    for name, tasks in models.items():
        of_tasks = {task: samples_of(scored, by_length) for task, by_length in tasks.items()}
        write_model(tmp_path, name, of_tasks, config=config)
    return build(Material(load_run(tmp_path)))


def test_the_mean_counts_tasks_alike_and_the_longest_length_above_the_threshold_is_effective(
    tmp_path, write_model, scored
):
    nsa = {
        # 0.95 of 20 documents and 1.0 of 4: the mean over tasks is 0.975, over documents 0.958.
        "ruler_vt": {1024: [1.0] * 19 + [0.0], 2048: [1.0] * 16 + [0.0] * 4, 4096: [0.0] * 20},
        "ruler_fwe": {1024: [1.0] * 4, 2048: [1.0] * 4, 4096: [0.5] * 4},
    }
    dense = {"ruler_vt": {n: [1.0] * 20 for n in (1024, 2048, 4096)}, "ruler_fwe": {4096: [1.0] * 4}}
    data = built(tmp_path, write_model, scored, {"nsa": nsa, "dense": dense})
    [part] = data.parts
    assert (part.title, part.lengths, part.tasks, part.of, part.percent) == (
        "RULER",
        (1024, 2048, 4096),
        2,
        13,
        "85.6",
    )
    assert part.incomplete
    [first, second] = sorted(part.models, key=lambda model: model.model, reverse=True)
    assert first.model == "nsa"
    assert [cell.text for cell in first.average] == ["97.5", "90.0", "25.0"]
    assert [cell.reaches for cell in first.average] == [True, True, False]
    assert first.effective == 2048
    # The interval of 0.9 reaches below 0.856; that of 0.975 doesn't.
    assert (first.certain, first.possible) == (1024, 2048)
    rows = {row.task: [cell and cell.text for cell in row.cells] for row in first.rows}
    assert rows == {"ruler_vt": ["95.0", "80.0", "0.0"], "ruler_fwe": ["100.0", "100.0", "50.0"]}
    # A mean over fewer tasks is another mean: none is given.
    assert [cell and cell.text for cell in second.average] == [None, None, "100.0"]
    assert second.effective == 4096
    assert data.anchors()[0].title == "RULER by length"


def test_a_mean_of_exactly_the_threshold_reaches_it(tmp_path, write_model, scored):
    tasks = {"ruler_vt": {1024: [0.856] * 3, 2048: [0.856, 0.855, 0.856]}}
    [part] = built(tmp_path, write_model, scored, {"nsa": tasks}).parts
    assert part.models[0].effective == 1024


def test_no_length_may_be_long_enough(tmp_path, write_model, scored):
    [part] = built(tmp_path, write_model, scored, {"nsa": {"ruler_vt": {1024: [0.0] * 9}}}).parts
    assert (part.models[0].effective, part.models[0].certain, part.models[0].possible) == (None, None, None)
    assert part.chart is None  # one length is no curve


def test_the_chart_has_a_curve_a_model_and_the_threshold(tmp_path, write_model, scored):
    tasks = {"ruler_vt": {1024: [1.0, 0.5], 2048: [0.5, 0.5]}}
    [part] = built(tmp_path, write_model, scored, {"nsa": tasks, "dense": tasks}).parts
    chart = part.chart
    assert [line.name for line in chart.lines] == [model.model for model in part.models]
    assert chart.x_label == "context length (tokens)"
    assert chart.lines[0].marks[0].label.startswith("at 1k: 75.0")
    tops = [tick.at for tick in chart.y_ticks]
    assert min(tops) <= chart.threshold <= max(tops)


@pytest.mark.parametrize(
    "config",
    [
        {"metadata": {"version": 1.0}},
        {"metadata": {"version": 1.0, "family": "needle"}},
        {"metadata": {"version": 1.0, "family": "gone"}},
        {},
    ],
)
def test_families_without_a_threshold_have_no_such_part(config, tmp_path, write_model, scored):
    tasks = {"needle_single": {1024: [1.0, 0.5]}}
    assert built(tmp_path, write_model, scored, {"nsa": tasks}, config=config) is None


def test_documents_without_a_length_are_left_out(tmp_path, write_model, scored):
    write_model(tmp_path, "nsa", {"ruler_vt": scored([1.0, 0.0])}, config=RULER)
    assert build(Material(load_run(tmp_path))) is None


def test_any_family_may_declare_a_threshold(tmp_path, write_model, scored, monkeypatch):
    monkeypatch.setattr(type(families()["needle"]), "effective_score", 0.5)
    config = {"metadata": {"version": 1.0, "family": "needle"}}
    tasks = {"needle_single": {1024: [1.0, 0.5], 2048: [0.0, 0.0]}}
    [part] = built(tmp_path, write_model, scored, {"nsa": tasks}, config=config).parts
    assert (part.title, part.percent, part.models[0].effective) == ("Needle in a haystack", "50.0", 1024)


def test_it_is_on_the_page(tmp_path, write_model, scored):
    from nsa_eval.sections import build_page
    from nsa_reports import to_html

    tasks = {"ruler_vt": {1024: [1.0, 0.9], 2048: [0.5, 0.5]}, "ruler_fwe": {1024: [1.0, 1.0]}}
    for name in ("nsa", "<b>dense"):
        write_model(
            tmp_path, name, {task: samples_of(scored, by) for task, by in tasks.items()}, config=RULER
        )
    page = to_html(build_page(Material(load_run(tmp_path))))
    assert '<section id="l0" class="lengths">' in page
    assert "2 of the family&#39;s 13 tasks are in this mean" in page or "2 of the family's 13 tasks" in page
    assert 'class="threshold"' in page
    assert "<b>dense" not in page.split("<script")[0]
    assert lengths.SECTION.title == "By length"


def test_facts_without_a_context_are_in_the_tables_and_not_on_the_axis(tmp_path, write_model, scored):
    config = {"metadata": {"version": 1.0, "family": "babilong", "protocol": "official"}}
    scores = {0: [1.0] * 8, 1000: [1.0] * 4 + [0.0] * 4, 2000: [0.0] * 8}
    data = built(tmp_path, write_model, scored, {"nsa": {"babilong_qa1": scores}}, config)
    [part] = data.parts
    [model] = part.models
    assert (part.lengths, [cell.text for cell in model.average]) == (
        (0, 1000, 2000),
        ["100.0", "50.0", "0.0"],
    )
    assert model.effective == 0
    assert part.chart is not None
    html = render_report(tmp_path).read_text(encoding="utf-8")
    assert "below 0" not in html
    single = {"nsa": {"babilong_qa1": {0: [1.0] * 8, 1000: [1.0] * 8}}}
    assert built(tmp_path / "b", write_model, scored, single, config).parts[0].chart is None
