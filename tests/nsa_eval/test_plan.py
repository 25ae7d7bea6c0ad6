"""Plans: jobs with stable ids and sizes, from the config alone."""

import sys

import pytest

from nsa_eval.config import load_config
from nsa_eval.plan import limited, make_plan


def test_jobs_are_models_times_tasks_in_order(tiny_config):
    plan = make_plan(load_config(tiny_config()))
    assert [(job.model.name, job.task.label) for job in plan.jobs] == [
        ("one", "needle_single"),
        ("one", "needle_multikey"),
        ("two", "needle_single"),
        ("two", "needle_multikey"),
    ]
    assert [job.samples for job in plan.of("one")] == [4, 2]
    assert plan.samples == 12
    assert plan.tokens == 2 * (2 * (256 + 320) + 2 * 320)
    assert plan.complete


def test_ids_are_stable_readable_and_unique(tiny_config):
    ids = [job.id for job in make_plan(load_config(tiny_config())).jobs]
    assert ids == [job.id for job in make_plan(load_config(tiny_config())).jobs]
    assert len(set(ids)) == 4
    assert ids[0].startswith("one-needle_single-")


@pytest.mark.parametrize(
    "change", ["tasks.0.samples=2", "models.one.dtype=float16", "seed=3", "engine.truncation=left"]
)
def test_ids_change_with_what_a_job_does(tiny_config, change):
    before, after = (make_plan(load_config(tiny_config(), o)).jobs[0].id for o in ([], [change]))
    assert before != after


@pytest.mark.parametrize(
    "change", ["name=other", "compare.resamples=500", "report.title=x", "models.two.dtype=float16"]
)
def test_ids_do_not_change_with_what_it_does_not(tiny_config, change):
    before, after = (make_plan(load_config(tiny_config(), o)).jobs[0].id for o in ([], [change]))
    assert before == after


def test_a_limit_cuts_samples_and_tokens(tiny_config):
    job = make_plan(load_config(tiny_config(), ["limit=1"])).jobs[0]
    assert (job.samples, job.tokens) == (1, 288)


@pytest.mark.parametrize(
    ("samples", "limit", "kept"), [(10, None, 10), (10, 3, 3), (10, 30, 10), (10, 0.25, 3), (10, 0.01, 1)]
)
def test_limits_are_lm_evals(samples, limit, kept):
    assert limited(samples, limit) == kept


def test_of_two_counts_the_smaller_limit_holds(tiny_config):
    config = load_config(tiny_config(), ["limit=3", "tasks.0.limit=2", "tasks.1.limit=9"])
    assert [job.task.limit for job in make_plan(config).of("one")] == [2, 3]


def test_the_runs_seed_is_the_tasks_default(tiny_config):
    jobs = make_plan(load_config(tiny_config(), ["seed=7", "tasks.1.seed=9"])).of("one")
    assert [job.task.params["seed"] for job in jobs] == [7, 9]


def test_lm_evals_tasks_have_no_size_before_their_data_is_loaded(tiny_config):
    plan = make_plan(load_config(tiny_config(tasks=[{"task": "arc_easy"}])))
    assert plan.jobs[0].samples is None
    assert not plan.complete


def test_planning_loads_no_data_libraries(tiny_config, tmp_path):
    """In a process of its own: this one has imported everything long ago."""
    import json
    import subprocess

    (tmp_path / "c.json").write_text(json.dumps(tiny_config()))
    code = (
        "import json, sys; from nsa_eval.config import load_config; from nsa_eval.plan import make_plan\n"
        "make_plan(load_config(json.load(open('c.json'))))\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'lm_eval') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
