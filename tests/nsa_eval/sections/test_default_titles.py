"""The heading of a page that was given none."""

import pytest
import yaml

from nsa_eval._titles import default_title
from nsa_eval.from_arguments import named
from nsa_eval.material import Material
from nsa_eval.sections import build_page

HASHED = named({"models": [], "tasks": []}, "needle", None)["name"]


@pytest.fixture
def titled(tmp_path, write_model, scored):
    def build(name, models, tasks, checkpoints=()):
        for model in models:
            write_model(tmp_path, model, {task: scored([1.0, 0.0]) for task in tasks})
        config = {"name": name, "models": [{"name": one} for one in checkpoints]}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        material = Material(tmp_path)
        assert build_page(material).title == default_title(material)
        return default_title(material)

    return build


@pytest.mark.parametrize(
    ("name", "models", "tasks", "checkpoints", "title"),
    [
        ("nightly", ["nsa"], ["needle_single"], ["nsa"], "nightly"),
        ("nightly-0badcafe", ["nsa"], ["needle_single"], ["nsa"], "nightly-0badcafe"),
        (HASHED, ["nsa"], ["needle_single"], ["nsa"], "nsa on needle_single"),
        ("eval-0badcafe", ["a", "b"], ["t", "u"], ["a", "b"], "a and b on t and u"),
        (HASHED, ["a", "b", "c"], ["t", "u", "v", "w"], ["a", "b", "c"], "a, b and c on 4 tasks"),
        (HASHED, ["d", "d+q@1", "d+q@2", "d+q@3"], ["t"], ["d"], "d in 4 variants on t"),
        (HASHED, ["a", "b", "c", "d"], ["t"], ["a", "b", "c", "d"], "4 models on t"),
        (HASHED, ["m" * 50, "n" * 50], ["t"], [], "2 models on t"),
    ],
)
def test_it_is_the_runs_name_or_says_models_and_tasks_where_that_is_a_hash(
    titled, name, models, tasks, checkpoints, title
):
    assert titled(name, models, tasks, checkpoints) == title
