"""Every key of the schema: what it changes by its mark is what store, resume, jobs and comparisons do."""

import copy
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance

from nsa_eval._conditions import store_context
from nsa_eval._tasks import LoadedTasks
from nsa_eval.comparison import _protocol as protocol
from nsa_eval.config import EngineSpec, ModelSpec, RunConfig, TaskSpec, all_variants, load_config, to_plain
from nsa_eval.config.marks import Effect, effect, walk
from nsa_eval.engine import ModelFacts
from nsa_eval.engine._requests import Naming, name_requests
from nsa_eval.errors import UserError
from nsa_eval.executors import VariantFacts
from nsa_eval.plan import make_plan
from nsa_eval.results import ModelRun
from nsa_eval.rundir import RunDirectory
from nsa_models import RunningBackend

BASE = {
    "name": "base",
    "models": [{"name": "one", "path": "zoo:twin-nsa-64k"}],
    "tasks": [{"task": "needle_single", "lengths": [512], "depths": 1, "samples": 1}],
}

# A value other than the base's for every key of the schema. A new key is missed here until it has one.
OTHER = {
    "name": "other",
    "models.name": "two",
    "models.path": "zoo:twin-full-64k",
    "models.dtype": "bfloat16",
    "models.device": "cuda",
    "models.backend": "reference",
    "models.revision": "abc",
    "models.trust_remote_code": True,
    "models.chat_template": "chat",
    "models.template_date": "2026-01-31",
    "models.system_instruction": "Answer.",
    "models.max_length": 1024,
    "models.lm": "vllm",
    "models.lm_args": {"tensor_parallel_size": 2},
    "models.variants.name": "renamed",
    "models.variants.set": {"nsa_select_count": 8},
    "models.variants.method.name": "exact-top",
    "models.variants.method.budget": 2048,
    "tasks.task": "needle_multikey",
    "tasks.alias": "again",
    "tasks.num_fewshot": 0,
    "tasks.limit": 1,
    "tasks.gen_kwargs": {"temperature": 0.5},
    "tasks.metadata": {"max_seq_lengths": [4096]},
    "tasks.repeats": 2,
    "tasks.truncation": "left",
    "engine.batch_size": 3,
    "engine.truncation": "left",
    "engine.prefill_chunk": 7,
    "engine.share_prefixes": False,
    "engine.cuda_graphs": "off",
    "engine.add_bos_token": True,
    "engine.parity": "lm-eval",
    "compare.baseline": "one",
    "compare.confidence": 0.9,
    "compare.resamples": 123,
    "compare.seed": 9,
    "report.title": "Title",
    "report.looks": 2,
    "report.margin": 5.0,
    "confirm_run_unsafe_code": True,
    "report.tables.name": "other",
    "report.tables.title": "Title",
    "report.tables.columns.header": "Needle",
    "report.tables.columns.group": "Needles",
    "report.tables.columns.task": "needle_multikey",
    "report.tables.columns.metric": "score",
    "report.tables.columns.length": 512,
    "report.tables.columns.mean": "all",
    "report.tables.rows.model": "two",
    "report.tables.rows.header": "Two",
    "report.tables.reported.source": "elsewhere",
    "report.tables.reported.rows.name": "them",
    "report.tables.reported.rows.values": {"needle_single": 0.5},
    "report.tables.scale": "fraction",
    "report.tables.digits": 2,
    "report.tables.intervals": False,
    "executor.kind": "ray",
    "executor.address": "auto",
    "executor.workers": 3,
    "executor.gpus_per_worker": 1,
    "seed": 7,
    "limit": 1,
    "include_path": ["."],
}
MARKS = {".".join(path): mark for path, mark in walk(RunConfig)}
METHOD = {"method": {"name": "quest", "budget": 1024}}
TABLE = {
    "name": "table",
    "columns": [{"task": "needle_single"}],
    "rows": [{"model": "one"}],
    "reported": [{"source": "a paper", "rows": [{"name": "others", "values": {}}]}],
}


def base_for(key):
    config = copy.deepcopy(BASE)
    if key.startswith("models.variants"):
        config["models"][0]["variants"] = [copy.deepcopy(METHOD) if ".method" in key else {}]
    if key.startswith("report.tables"):
        config["report"] = {"tables": [copy.deepcopy(TABLE)]}
    return config


def changed(key):
    config = base_for(key)
    *path, last = key.split(".")
    here = config
    for part in path:
        here = here.setdefault(part, {})
        here = here[0] if isinstance(here, list) else here
    here[last] = OTHER[key]
    return config


def load(data):
    return load_config(data, check_names=False)


def context(config):
    """The store's context of the first variant, as if "auto" had chosen what the config names."""
    [variant] = all_variants(config)
    spec = variant.checkpoint
    facts = VariantFacts(
        model=ModelFacts(
            max_length=spec.max_length or 2048, parameters=1, dtype=spec.dtype, device=spec.device
        ),
        backend=RunningBackend(name=spec.backend, package="torch 2", numerics=1),
        attention="nsa",
        changes=dict(variant.changes),
        method=variant.settings.get("method"),
    )
    return store_context(variant, facts, f"weights of {spec.path} {spec.revision}", config)


def test_every_key_is_listed_here_and_none_that_is_gone():
    assert set(OTHER) == set(MARKS)


def test_a_key_without_a_mark_counts_as_changing_responses():
    class Section(EngineSpec):
        new_key: int = 0

    assert effect(Section.model_fields["new_key"]) is Effect.RESPONSE


@pytest.mark.parametrize("key", OTHER)
def test_the_value_is_another(key):
    before, after = load(base_for(key)), load(changed(key))
    assert to_plain(before) != to_plain(after)


@pytest.mark.parametrize("key", [key for key in OTHER if not key.startswith("tasks.")])
def test_the_store_key_holds_what_can_change_a_response_and_no_more(key):
    before, after = context(load(base_for(key))), context(load(changed(key)))
    assert (before != after) == (MARKS[key] is Effect.RESPONSE or key in {"models.path", "models.revision"})


@pytest.mark.parametrize("key", OTHER)
def test_a_run_goes_on_with_other_values_of_neutral_keys_alone(key, tmp_path):
    directory = RunDirectory(tmp_path)
    directory.prepare(load(base_for(key)))
    if MARKS[key] is Effect.NEUTRAL:
        assert directory.prepare(load(changed(key)))
    else:
        with pytest.raises(UserError, match="holds a run with another config"):
            directory.prepare(load(changed(key)))


@pytest.mark.parametrize("key", [key for key in OTHER if key != "include_path"])
def test_a_jobs_id_changes_with_what_is_asked_and_of_whom(key):
    [before], [after] = (make_plan(load(data)).jobs for data in (base_for(key), changed(key)))
    assert (before.id.rsplit("-")[-1] != after.id.rsplit("-")[-1]) == (MARKS[key] is not Effect.NEUTRAL)


def model_run(config):
    return ModelRun(
        name="one",
        directory=Path(),
        tasks={},
        config=config["models"][0],
        run_config=config,
        # Where nothing was cut, no policy acted: the same cut in both.
        audit=[{"kind": "truncated", "task": "t", "doc_id": 1}],
    )


@pytest.mark.parametrize("key", OTHER)
def test_comparisons_forbid_note_or_pass_over_a_key_by_its_mark(key):
    runs = [model_run(to_plain(load(data))) for data in (base_for(key), changed(key))]
    forbidden = protocol.mismatches(*runs, ("a", "b"), None)
    noted = [line for line in protocol.notes(*runs, ("a", "b"), []) if "1 prompt was cut" not in line]
    section, _, name = key.partition(".")
    asked = MARKS[key] in (Effect.RESPONSE, Effect.REQUEST)
    # Tasks, prompts, documents and acting seeds are compared by what was asked, which these runs don't have.
    assert bool(forbidden) == (asked and (section == "engine" or key == "limit"))
    assert bool(noted) == (
        (section == "engine" and not asked) or (section == "models" and name in protocol._NOTED_MODEL)
    )
    assert (section == "models" and MARKS[key] is Effect.RESPONSE and "variants" not in key) == (
        section == "models" and name in protocol._NOTED_MODEL
    )


def test_the_noted_keys_of_a_model_are_those_that_change_its_responses():
    assert set(protocol._NOTED_MODEL) == {
        name
        for name, info in ModelSpec.model_fields.items()
        if effect(info) is Effect.RESPONSE and name != "variants"
    }


def test_what_a_task_says_about_cuts_is_part_of_its_requests_keys():
    """A key of a task that its requests don't carry stands in the context of its requests."""
    in_context = {key for key, mark in MARKS.items() if key.startswith("tasks.") and mark is Effect.RESPONSE}
    assert in_context == {"tasks.truncation"}
    spec = TaskSpec(task="arc_easy", truncation="left")
    loaded = LoadedTasks(
        specs={"arc_easy": spec, "plain": TaskSpec(task="plain")}, truncations={"arc_easy": "left"}
    )
    assert loaded.contexts() == {"arc_easy": '{"truncation": "left"}'}
    asked = [
        Instance("generate_until", {"q": 1}, ("a prompt", {}), 0, (task, 0, 1))
        for task in ("arc_easy", "plain")
    ]

    def keys(contexts):
        return [
            r.key for r in name_requests(asked, "generate_until", Naming(context="c", task_contexts=contexts))
        ]

    with_policy, without = keys(loaded.contexts()), keys({})
    assert with_policy[0] != without[0]
    assert with_policy[1] == without[1]
