"""The sections of costs: figures in words, and scores over them."""

import pytest

from nsa_eval.material import Material
from nsa_eval.results import load_run
from nsa_eval.sections import build_page, costs, quality_cost
from nsa_eval.store import Conditions, Cost
from nsa_reports import to_html

H200 = Conditions(
    device_name="NVIDIA H200",
    device="cuda",
    dtype="bfloat16",
    backend="triton",
    batch_size="auto",
    weights_bytes=2**30,
    cuda_graphs=True,
)
REPLIES = Cost(
    prefill_seconds=10.0,
    decode_seconds=2.0,
    prompt_tokens=100,
    new_tokens=41,
    decode_steps=40,
    peak_bytes=3 * 2**30,
    kv_read=4000,
    kv_kept=1234,
    kv_read_bytes=40 * 3 * 2**20,
    kv_kept_bytes=5 * 2**30,
    warm_up_seconds=31.0,
    responses=20,
)


@pytest.fixture
def run(tmp_path, write_model, scored):
    """A run of models with costs and conditions given by name."""

    def made(models, tasks=("task",)):
        for name in models:
            write_model(tmp_path, name, {task: scored([1, 0, 1, 1]) for task in tasks})
        loaded = load_run(tmp_path)
        given = {
            name: loaded.models[name].model_copy(update={"costs": found, "conditions": conditions})
            for name, (found, conditions) in models.items()
        }
        return loaded.model_copy(update={"models": given})

    return made


def test_rows_say_time_memory_and_reads(run):
    data = costs.build(Material(run({"nsa": ({"task": REPLIES}, H200)})))
    [row] = data.rows
    assert (row.task, row.model, row.prefill, row.prompt, row.decode) == (
        "task",
        "nsa",
        "10.0 s",
        "500 ms",
        "50 ms",
    )
    assert (row.pace, row.memory, row.tokens, row.reads, row.kept) == ("20", "2 GiB", "100", "3 MiB", "5 GiB")
    assert data.memory
    [setting] = data.settings
    assert (setting.device, setting.weights, setting.warm_up) == ("NVIDIA H200", "1 GiB", "31.0 s")
    assert setting.how == "bfloat16, triton, batch auto, CUDA graphs, prefixes shared"


def test_scored_text_has_no_decode(run):
    cost = Cost(prefill_seconds=150.4, prompt_tokens=100, new_tokens=41)
    data = costs.build(Material(run({"nsa": ({"task": cost}, None)})))
    [row] = data.rows
    assert (row.prefill, row.decode, row.pace, row.memory, row.reads) == ("150 s", "", "", "", "")
    assert (data.memory, data.settings) == (False, ())


def test_nothing_is_shown_where_nothing_was_recorded(run):
    material = Material(run({"nsa": ({}, None)}))
    assert costs.build(material) is None
    assert quality_cost.build(material) is None


def test_points_are_scores_over_each_cost(run):
    dense = REPLIES.model_copy(update={"decode_seconds": 8.0, "kv_read_bytes": None})
    models = {"nsa": ({"task": REPLIES}, H200), "dense": ({"task": dense}, H200)}
    data = quality_cost.build(Material(run(models)))
    assert [axis.name for axis in data.axes] == ["decode", "prefill", "kept", "memory"], (
        "no two have KV reads"
    )
    [bench] = data.benches
    [plot] = bench.plots
    decode = plot.charts[0]
    assert [dot.label.split(",")[0] for dot in decode.dots] == ["50", "200"]
    assert "75.0 %" in decode.title
    assert bench.conditions == (("bfloat16, triton, batch auto, CUDA graphs, prefixes shared", "nsa, dense"),)


@pytest.mark.parametrize("other", [H200.model_copy(update={"device_name": "NVIDIA A100"}), None])
def test_models_of_different_devices_are_never_set_beside_each_other(run, other):
    models = {"nsa": ({"task": REPLIES}, H200), "dense": ({"task": REPLIES}, other)}
    assert quality_cost.build(Material(run(models))) is None
    page = to_html(build_page(Material(run(models))))
    assert ("measured on different devices" in page) == (other is not None)
    models["third"] = ({"task": REPLIES}, H200)
    data = quality_cost.build(Material(run(models)))
    [bench] = data.benches
    assert {dot.key.full_name for dot in bench.plots[0].charts[0].dots} == {"nsa", "third"}
    assert data.alone == (("dense",) if other else ())


def test_the_page_has_a_chart_for_each_task_and_says_what_was_measured_on(run):
    tasks = [f"task{n}" for n in range(8)]
    a100 = H200.model_copy(update={"batch_size": "8"})
    found = dict.fromkeys(tasks, REPLIES)
    page = to_html(build_page(Material(run({"nsa": (found, H200), "dense": (found, a100)}, tasks))))
    section = page[page.index('id="quality_cost"') :]
    section = section[: section.index("</section>")]
    assert section.count('<svg viewBox="0 0 460') == 8 * 5
    assert "On NVIDIA H200." in section
    assert "dense: bfloat16, triton, batch 8, CUDA graphs" in section
    assert section.count("checked>") == 1
    assert "<summary>2 more</summary>" in section
    style = page[: page.index("</style>")]
    assert all(f"input[value={axis.name}]:checked) .over-{axis.name}" in style for axis in quality_cost.AXES)
