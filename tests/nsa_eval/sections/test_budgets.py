"""The section of budgets: lines of sweeps, where densities come from, fronts, equal costs, least budgets."""

import csv
import io
import json

import pytest

from nsa_eval.budgets import budgets_csv, budgets_json, density_of, study_of, sweeps_of
from nsa_eval.budgets.cost_model import Shape
from nsa_eval.comparison import compare
from nsa_eval.material import Material
from nsa_eval.report import render_report
from nsa_eval.results import load_run
from nsa_eval.sections import budgets, build_page
from nsa_eval.store import Cells, Conditions, Cost
from nsa_reports import to_html

HERE = Conditions(
    device_name="D", device="cpu", dtype="float32", backend="sdpa", batch_size="1", weights_bytes=1
)
FIELDS = {
    "hidden_size": 8,
    "head_dim": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
}
QUEST = {"name": "quest", "dense_layers": []}
RIGHT = [1.0] * 300


def cost_of(decode, *, prefill=1.0, steps=10, tokens=99, n=10):
    """Costs of n replies whose prompts and steps have these densities."""
    dense = tokens * (tokens + 1) // 2 * n
    read = round(dense * prefill)
    whole = steps * n * (tokens + 6)
    some = round(whole * decode)
    return Cost(
        prefill_seconds=1.0,
        decode_seconds=1.0 if steps else 0.0,
        prompt_tokens=tokens * n,
        new_tokens=(steps + 1) * n,
        decode_steps=steps * n,
        kv_read=some if steps else None,
        kv_kept=tokens,
        prefill_stated=Cells(read=read, least=read, dense=dense),
        decode_stated=Cells(read=some, least=some, dense=whole, index=5) if steps else None,
        responses=n,
        device="D",
    )


@pytest.fixture
def run(tmp_path, write_model, scored):
    """A run of models, each given by its settings, scores (by length or not) and costs."""

    def made(models, task="needle_single"):
        for name, (settings, scores, _) in models.items():
            by_length = scores if isinstance(scores, dict) else {None: scores}
            values = [value for one in by_length.values() for value in one]
            lengths = [length for length, one in by_length.items() for _ in one]
            extra = {} if None in by_length else {"length": lengths}
            recorded = {"model_path": "zoo:m", "attention": "full", "model_fields": FIELDS, **settings}
            write_model(tmp_path, name, {task: scored(values, **extra)})
            file = next((tmp_path / name.replace("/", "__")).glob("results_*.json"))
            content = json.loads(file.read_text())
            content["config"] |= recorded
            file.write_text(json.dumps(content))
        loaded = load_run(tmp_path)
        given = {}
        for name, (_, _, costs) in models.items():
            lengths = costs if isinstance(costs, dict) else {}
            whole = sum(lengths.values(), Cost()) if lengths else costs
            given[name] = loaded.models[name].model_copy(
                update={
                    "costs": {task: whole} if whole is not None else {},
                    "costs_by_length": {task: lengths} if lengths else {},
                    "conditions": HERE if whole is not None else None,
                }
            )
        ordered = {name: given[name] for name in models}
        return loaded.model_copy(update={"models": ordered})

    return made


def method(name, **parameters):
    return {"variant": {"method": {"name": name, **parameters}}}


def material_of(run, baseline="dense", margin=None):
    material = Material(run, compare(run, baseline=baseline, resamples=200))
    if margin is not None:
        first = next(iter(run.models))
        config = {"report": {"margin": margin}}
        models = {**run.models, first: run.models[first].model_copy(update={"run_config": config})}
        material = Material(run.model_copy(update={"models": models}), material.comparison)
    return material


def quests(*budgets, scores=None):
    return {
        f"q{budget}": (
            method(**QUEST, budget=budget),
            (scores or {}).get(budget, RIGHT),
            cost_of(budget / 105),
        )
        for budget in budgets
    }


DENSE = {"dense": ({}, RIGHT, cost_of(1.0))}


def test_models_of_one_method_are_one_line_from_the_largest_budget_down(run):
    [sweep] = sweeps_of(material_of(run({**DENSE, **quests(16, 64, 32)})))
    assert (sweep.name, sweep.parameter, sweep.reference) == ("zoo:m+quest", "budget", "dense")
    study = study_of(material_of(run({**DENSE, **quests(16, 64, 32)})))
    [place] = study.places
    [line] = place.lines
    assert [point.value for point in line.points] == ["64", "32", "16"]
    assert [point.label for point in place.full] == ["dense"]


def test_other_parameters_that_differ_make_lines_of_their_own(run):
    models = {
        f"{reading}{budget}": (method(**QUEST, budget=budget, reading=reading), RIGHT, None)
        for reading in ("eval", "kernel")
        for budget in (16, 32)
    }
    models["plain64"] = (method(**QUEST, budget=64), RIGHT, None)  # reading is at its default: eval
    sweeps = sweeps_of(material_of(run({**DENSE, **models})))
    found = {sweep.name: [one.label for one in sweep.variants] for sweep in sweeps}
    assert found == {
        "zoo:m+quest, reading=eval": ["eval16", "eval32", "plain64"],
        "zoo:m+quest, reading=kernel": ["kernel16", "kernel32"],
    }


def test_budgets_of_both_kinds_are_points_of_one_line_ordered_by_what_was_read(run):
    """A share is more than so many tokens at one length, and less at another."""
    shares = {
        f"s{n}": (
            method(**QUEST, budget=f"{n}%"),
            {512: RIGHT, 1024: RIGHT},
            dict.fromkeys((512, 1024), cost_of(n / 100)),
        )
        for n in (10, 50)
    }
    tokens = {
        f"q{n}": (
            method(**QUEST, budget=n),
            {512: RIGHT, 1024: RIGHT},
            {length: cost_of(n / length) for length in (512, 1024)},
        )
        for n in (64, 256)
    }
    dense = {"dense": ({}, {512: RIGHT, 1024: RIGHT}, dict.fromkeys((512, 1024), cost_of(1.0)))}
    material = material_of(run({**dense, **tokens, **shares}))
    [sweep] = sweeps_of(material)
    assert (sweep.name, sweep.parameter) == ("zoo:m+quest", "budget")
    found = {place.length: place.lines for place in study_of(material).places}
    assert [point.value for point in found[512][0].points] == ["256", "50%", "64", "10%"]
    assert [point.value for point in found[1024][0].points] == ["50%", "256", "10%", "64"]
    assert all(len(lines) == 1 for lines in found.values())
    section = budgets.build(material)
    assert [row.cells[0].text for row in section.least] == ["10%", "64"]
    assert [trial.value for trial in section.panels[1].trials] == ["50%", "256", "10%", "64"]


def test_a_method_without_a_budget_is_swept_by_what_differs(run):
    models = {
        f"x{tau}": (method("no-such-method", tau=tau), RIGHT, cost_of(1.0, prefill=tau / 2))
        for tau in (0.8, 0.95, 0.9)
    }
    study = study_of(material_of(run({**DENSE, **models})))
    [line] = study.places[0].lines
    assert (line.sweep.name, line.sweep.parameter) == ("zoo:m+no-such-method", "tau")
    assert [point.value for point in line.points] == ["0.95", "0.9", "0.8"]  # by what was read
    data = budgets.build(material_of(run({**DENSE, **models})))
    assert [axis.name for axis in data.axes] == ["prefill", "flops"]


def test_fields_of_a_sparse_checkpoint_are_held_to_the_baseline(run):
    nsa = {"model_path": "zoo:nsa", "attention": "nsa", "model_fields": {**FIELDS, "nsa_select_count": 32}}
    models = {
        "nsa": (nsa, RIGHT, cost_of(0.5)),
        "nsa+n=4": ({**nsa, "variant": {"set": {"nsa_select_count": 4}}}, RIGHT, cost_of(0.1)),
    }
    [sweep] = sweeps_of(material_of(run({**DENSE, **models})))
    assert (sweep.name, sweep.parameter, sweep.reference) == ("zoo:nsa", "nsa_select_count", "dense")
    assert [sweep.value(one) for one in sweep.variants] == ["32", "4"]


def test_a_run_without_a_sweep_has_no_such_section(run):
    models = {**DENSE, **quests(16)}
    assert study_of(material_of(run(models))) is None
    assert budgets.build(material_of(run(models))) is None


@pytest.mark.parametrize(
    ("stated", "counted", "value", "source"),
    [
        (Cells(read=50, least=50, dense=100), None, 0.5, "stated"),
        (Cells(read=50, least=40, dense=100), None, 0.5, "stated, at most"),
        (Cells(read=50, least=40, dense=100), Cells(read=90, least=90, dense=200, heads=2), 0.45, "counted"),
        # Half of the cells were shared: what is left is sparser than a request by itself.
        (Cells(read=50, least=50, dense=100), Cells(read=20, least=20, dense=100, heads=2), 0.5, "stated"),
        # Heads differ, so that a declaration is a bound alone.
        (Cells(read=50, least=40, dense=100), Cells(read=20, least=20, dense=100, heads=2), 0.2, "counted"),
    ],
)
def test_densities_are_counted_where_counts_are_whole(stated, counted, value, source):
    found = density_of(stated, counted)
    assert (found.value, found.source) == (value, source)


def test_nothing_read_has_no_density():
    assert density_of(None, None) is None
    assert density_of(Cells(read=0, least=0, dense=0), None) is None


def test_the_least_budget_is_named_with_its_density_and_margin(run):
    worse = [1.0] * 240 + [0.0] * 60
    models = {**DENSE, **quests(16, 32, 64, scores={16: worse})}
    data = budgets.build(material_of(run(models)))
    [row] = data.least
    [cell] = row.cells
    assert (cell.kind, cell.text) == ("found", "32")
    assert cell.note.startswith("30.5 % of decode cells, difference at least \N{MINUS SIGN}1.")
    assert data.study.margin == 2.0
    verdicts = [(trial.value, trial.verdict) for trial in data.panels[0].trials]
    assert verdicts == [("64", "not worse"), ("32", "not worse"), ("16", "not shown")]


def test_none_of_those_tried_and_too_few_are_told_apart(run):
    worse = [1.0] * 240 + [0.0] * 60
    scores = {16: worse, 32: worse}
    [row] = budgets.build(material_of(run({**DENSE, **quests(16, 32, scores=scores)}))).least
    assert row.cells[0].text == "none of those tried"


def test_few_documents_show_nothing_however_alike(run):
    models = {**DENSE, **quests(16, 32)}
    models = {name: (settings, scores[:50], cost) for name, (settings, scores, cost) in models.items()}
    [row] = budgets.build(material_of(run(models))).least
    assert (row.cells[0].kind, row.cells[0].note) == ("few", "50; 189 or more could show it")
    [row] = budgets.build(material_of(run(models), margin=10)).least
    assert (row.cells[0].kind, row.cells[0].text) == ("found", "16")


def test_a_method_of_decode_steps_is_full_attention_where_nothing_is_decoded(run):
    models = {
        "dense": ({}, RIGHT, cost_of(1.0, steps=0)),
        **{f"q{b}": (method(**QUEST, budget=b), RIGHT, cost_of(1.0, steps=0)) for b in (16, 32)},
        **{
            f"s{b}": (method("streaming-llm", budget=b), RIGHT, cost_of(1.0, prefill=b / 100, steps=0))
            for b in (16, 32)
        },
    }
    data = budgets.build(material_of(run(models)))
    [row] = data.least
    assert [cell.kind for cell in row.cells] == ["full", "found"]


def test_without_full_attention_nothing_is_held_to_it(run):
    models = quests(16, 32)
    [row] = budgets.build(material_of(run(models), baseline="q16")).least
    assert (row.cells[0].kind, row.cells[0].note) == ("unknown", "this run has no full attention for it")


def test_places_are_lengths_where_a_task_has_some(run):
    by_length = {512: RIGHT, 1024: [0.0] * 10 + RIGHT[10:]}
    costs = {512: cost_of(0.5), 1024: cost_of(0.25)}
    models = {
        "dense": ({}, dict.fromkeys(by_length, RIGHT), dict.fromkeys(costs, cost_of(1.0))),
        **{f"q{b}": (method(**QUEST, budget=b), by_length, costs) for b in (16, 32)},
    }
    data = budgets.build(material_of(run(models)))
    assert [row.place for row in data.least] == ["needle_single at 512", "needle_single at 1k"]
    assert [row.cells[0].kind for row in data.least] == ["found", "none"]
    densities = [place.lines[0].points[0].decode.value for place in data.study.places]
    assert densities == pytest.approx([0.5, 0.25], abs=0.01)


def test_a_group_is_a_place_before_its_members_with_all_of_their_costs(tmp_path, write_model, scored):
    models = {
        "dense": ({}, 1.0),
        "q16": (method(**QUEST, budget=16), 0.15),
        "q32": (method(**QUEST, budget=32), 0.3),
    }
    tasks = {"one": scored([1.0] * 20), "two": scored([0.0, 1.0] * 10)}
    figures = {"one": 1.0, "two": 0.5, "both": 0.75}
    results = {name: {"alias": name, "score,none": figure} for name, figure in figures.items()}
    for name, (settings, _) in models.items():
        recorded = {"model_path": "zoo:m", "attention": "full", "model_fields": FIELDS, **settings}
        write_model(tmp_path, name, tasks, results=results, group_subtasks={"both": ["one", "two"]},
                    groups={"both": results["both"]}, config=None)  # fmt: skip
        file = next((tmp_path / name).glob("results_*.json"))
        content = json.loads(file.read_text())
        content["config"] |= recorded
        file.write_text(json.dumps(content))
    loaded = load_run(tmp_path)
    given = {
        name: loaded.models[name].model_copy(
            update={"costs": {"one": cost_of(density), "two": cost_of(density)}, "conditions": HERE}
        )
        for name, (_, density) in models.items()
    }
    study = study_of(material_of(loaded.model_copy(update={"models": given})))
    assert [place.task for place in study.places] == ["both", "one", "two"]
    [line] = study.places[0].lines
    assert [round(point.decode.value, 2) for point in line.points] == [0.3, 0.15]
    assert [trial.n for trial in line.least.trials] == [40, 40]


def test_scores_at_equal_cost_lie_between_measured_points_and_say_so(run):
    half = [1.0] * 150 + [0.0] * 150
    study = study_of(material_of(run({**DENSE, **quests(21, 84, scores={21: half})})))
    [place] = study.places
    assert place.iso_flops == ()  # prompts are dense at every budget
    found = {round(one.level.density, 3): one.scores[0] for one in place.iso_cost}
    assert 0.15 not in found
    assert all(one.interpolated for one in found.values() if one is not None)
    [point, other] = place.lines[0].points
    level = next(one for one in place.iso_cost if one.level.density == 0.5)
    share = (level.level.cost - other.elements) / (point.elements - other.elements)
    assert level.scores[0].value == pytest.approx(0.5 + 0.5 * share)
    assert 0 < level.level.share < 1


def test_elements_of_vectors_that_were_cut_are_those_that_are_left(run):
    whole, cut = cost_of(1.0), cost_of(1.0)
    left = Cells(**{**cut.decode_stated.model_dump(), "left": cut.decode_stated.read // 4})
    cut = cut.model_copy(update={"decode_stated": left}) + Cost()
    mustafar = {f"m{n}": (method("mustafar", budget=n), RIGHT, cut) for n in (2, 4)}
    [place] = study_of(material_of(run({"dense": ({}, RIGHT, whole), **mustafar}))).places
    shape = Shape.of(FIELDS)
    cache = 2 * shape.layers * shape.head * shape.kv_heads * 105
    for point in place.lines[0].points:
        assert place.full[0].elements - point.elements == pytest.approx(0.75 * cache, rel=0.02)
        assert point.decode.value == 1.0  # every token is read


def test_time_of_simulated_methods_is_no_point(run):
    study = study_of(material_of(run({**DENSE, **quests(16, 32)})))
    [place] = study.places
    assert all(point.decode_ms is None for point in place.lines[0].points)
    assert place.full[0].decode_ms == pytest.approx(10.0)
    data = budgets.build(material_of(run({**DENSE, **quests(16, 32)})))
    assert "decode_ms" not in [axis.name for axis in data.axes]
    assert data.simulated == ("zoo:m+quest",)


def test_time_of_a_method_that_runs_by_kernels_is_a_point(run):
    sparse = {"name": "block-sparse", "block": 16}
    models = {
        f"{budget}, {fast}": (method(**sparse, budget=budget, fast=fast), RIGHT, cost_of(0.3))
        for budget in (64, 32, "20%", "10%")
        for fast in (True, False)
    }
    [place] = study_of(material_of(run({**DENSE, **models}))).places
    timed = {point.label: point.decode_ms is not None for line in place.lines for point in line.points}
    assert timed == {label: label.endswith("True") for label in models}


def test_files_hold_the_figures_of_the_page(run):
    study = study_of(material_of(run({**DENSE, **quests(16, 32)})))
    rows = list(csv.DictReader(io.StringIO(budgets_csv(study))))
    assert [(row["model"], row["value"], row["least"]) for row in rows] == [
        ("dense", "", ""),
        ("q32", "32", "False"),
        ("q16", "16", "True"),
    ]
    assert rows[2]["score"] == "100.0"
    assert float(rows[2]["decode_density"]) == pytest.approx(16 / 105, abs=1e-3)
    assert rows[2]["decode_source"] == "stated"
    content = json.loads(json.dumps(budgets_json(study)))
    [place] = content["places"]
    least = place["least"][0]
    assert (content["margin"], least["model"], least["outcome"]) == (2.0, "q16", "found")
    assert len(place["points"]) == 3


def test_the_page_shows_it_and_a_run_writes_its_files(run, tmp_path):
    made = run({**DENSE, **quests(16, 32, 64)})
    material = material_of(made)
    page = to_html(build_page(material))
    section = page[page.index('<section id="budgets"') :]
    section = section[: section.index("</section>")]
    assert section.count("<figure") == len(budgets.build(material).axes)
    assert "none of those tried" not in section
    assert 'class="on-front"' in section
    style = page[: page.index("</style>")]
    assert all(f"input[value={axis.name}]:checked) .over-{axis.name}" in style for axis in budgets.AXES)
    render_report(tmp_path, comparison=material.comparison, run=made)
    assert (tmp_path / "tables" / "budgets.csv").is_file()
    assert json.loads((tmp_path / "tables" / "budgets.json").read_text())["places"]
