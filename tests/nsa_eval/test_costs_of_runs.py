"""costs.json of a run: written with its conditions, read in both of its forms, told of in the terminal."""

import json
from types import SimpleNamespace

import pytest

from nsa_eval._profiles import leave_profiles
from nsa_eval.config import all_variants, load_config
from nsa_eval.errors import UserError
from nsa_eval.estimate import read_profiles
from nsa_eval.results import load_run
from nsa_eval.runner import run
from nsa_eval.store import Conditions, Cost, CostSheet, LengthCost

HERE = Conditions(
    device_name="H", device="cuda", dtype="bfloat16", backend="triton", batch_size="4", weights_bytes=7
)


@pytest.fixture
def finished(tiny_config, tmp_path):
    run(tiny_config(), output=tmp_path / "run", limit=1, progress=False)
    return tmp_path / "run"


def test_a_run_says_what_its_costs_were_measured_on(finished):
    from nsa_models import load_model

    loaded = load_run(finished)
    for name, model in loaded.models.items():
        conditions = model.conditions
        assert (conditions.device, conditions.dtype, conditions.batch_size) == ("cpu", "float32", "1")
        path = next(entry["path"] for entry in loaded.config["models"] if entry["name"] == name)
        weights = load_model(path, device="cpu")
        assert conditions.weights_bytes == weights.get_memory_footprint()
        assert set(model.costs) == {"needle_single", "needle_multikey"}
        assert all(cost.responses == 1 for cost in model.costs.values())
        assert all(cost.kv_kept_bytes > 0 for cost in model.costs.values())
    page = (finished / "report.html").read_text()
    assert "Quality against cost" in page
    assert conditions.device_name in page


def test_costs_of_an_earlier_form_are_of_an_unknown_device(finished):
    file = finished / "one" / "costs.json"
    tasks = json.loads(file.read_text())["tasks"]
    file.write_text(json.dumps(tasks))
    model = load_run(finished).models["one"]
    assert model.conditions is None
    assert {task: cost.model_dump(mode="json") for task, cost in model.costs.items()} == tasks


@pytest.mark.parametrize(
    "content", ['{"conditions": null, "tasks": 3}', '{"needle_single": {"odd": 1}}', "[]"]
)
def test_damaged_costs_are_one_message(finished, content):
    (finished / "one" / "costs.json").write_text(content)
    with pytest.raises(UserError, match=r"one/costs\.json"):
        load_run(finished)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.3, []), (31.0, ["warm-up 31.0 s (one 31.0 s): paid once, and in no figure of the costs"])],
)
def test_what_was_paid_once_is_told_where_it_is_seconds(tiny_config, tmp_path, monkeypatch, seconds, told):
    monkeypatch.setenv("NSA_EVAL_PROFILES", str(tmp_path / "profiles"))
    variant, _ = all_variants(load_config(tiny_config()))
    cost = Cost(prefill_seconds=2.0, prompt_tokens=100, new_tokens=1, responses=1, warm_up_seconds=seconds)
    row = LengthCost(kind="scored", up_to=128, longest=101, cost=cost)
    (tmp_path / "one").mkdir()
    sheet = CostSheet(conditions=HERE, tasks={"t": cost}, lengths=(row,))
    (tmp_path / "one" / "costs.json").write_text(sheet.model_dump_json())
    assert leave_profiles([variant], SimpleNamespace(path=tmp_path)) == told
    [profile] = read_profiles()
    assert profile.warm_up_seconds == seconds
    assert profile.runs == (tmp_path.name,)
