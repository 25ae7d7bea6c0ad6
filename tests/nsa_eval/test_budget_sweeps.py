"""How sweeps are written: budgets in tokens and as shares, other parameters as lists."""

import pytest

from nsa_eval.config import all_variants, load_config
from nsa_eval.errors import ConfigError
from nsa_eval.from_arguments import with_variants


def names(method):
    model = {"path": "zoo:twin-full-64k", "name": "dense", "variants": [{"method": method}]}
    task = {"task": "needle_single", "lengths": [512], "depths": 1, "samples": 1}
    config = load_config({"name": "run", "models": [model], "tasks": [task]})
    return [variant.name for variant in all_variants(config)]


def test_budgets_may_be_tokens_and_shares():
    found = names({"name": "quest", "budget": ["5%", "12.50 %", "1k"], "page": 16})
    assert found == ["dense+quest@5pct,page=16", "dense+quest@12.5pct,page=16", "dense+quest@1024,page=16"]
    assert names({"name": "quest", "budget": "100%"}) == ["dense+quest@100pct"]


def test_a_list_of_another_parameter_is_a_sweep_of_it():
    found = names({"name": "quest", "budget": [256, 512], "reading": ["eval", "kernel"]})
    assert found == [
        *("dense+quest@256,reading=eval", "dense+quest@256,reading=kernel"),
        *("dense+quest@512,reading=eval", "dense+quest@512,reading=kernel"),
    ]


def test_a_parameter_that_is_a_list_is_swept_by_lists_of_lists():
    assert names({"name": "quest", "budget": 256, "dense_layers": [0, 1]}) == [
        "dense+quest@256,dense_layers=0-1"
    ]
    swept = names({"name": "quest", "budget": 256, "dense_layers": [[0], [0, 1]]})
    assert swept == ["dense+quest@256,dense_layers=0", "dense+quest@256,dense_layers=0-1"]


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("0%", "above 0 and up to 100 %"),
        ("120%", "above 0 and up to 100 %"),
        (["10%", "10.0 %"], "each once"),
        ("ten", "a length in tokens"),
    ],
)
def test_other_budgets_are_refused(budget, said):
    with pytest.raises(ConfigError, match=said):
        names({"name": "quest", "budget": budget})


def test_a_methods_own_refusal_stands_at_its_place():
    with pytest.raises(ConfigError, match="page must be at least 1"):
        names({"name": "quest", "budget": ["10%"], "page": 0})


def test_the_command_line_takes_shares_beside_tokens():
    [entry] = with_variants("zoo:twin-full-64k", methods=["quest:5%,1k,page=8"])
    assert entry["variants"][1:] == [{"method": {"name": "quest", "budget": ["5%", 1024], "page": 8}}]
    [entry] = with_variants("zoo:twin-full-64k", methods=["quest:10%"])
    assert entry["variants"][1:] == [{"method": {"name": "quest", "budget": "10%"}}]
