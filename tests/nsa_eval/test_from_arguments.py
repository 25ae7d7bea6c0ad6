"""Variants from a command line's texts."""

import pytest
import torch
from safetensors.torch import save_file

from nsa_eval.config import all_variants, load_config
from nsa_eval.errors import UserError
from nsa_eval.from_arguments import evaluate_config, with_variants

DENSE, NSA = "zoo:twin-full-64k", "zoo:twin-nsa-64k"


def names(models):
    task = {"task": "needle_single", "lengths": [512]}
    return [variant.name for variant in all_variants(load_config(evaluate_config(models, [task])))]


def test_methods_go_to_dense_models_and_fields_to_those_that_have_them():
    models = with_variants([DENSE, NSA], methods=["quest:1k,2560,page=32"], sweeps=["nsa_select_count=4,8"])
    assert names(models) == [
        "twin-full-64k", "twin-full-64k+quest@1024,page=32", "twin-full-64k+quest@2560,page=32",
        "twin-nsa-64k", "twin-nsa-64k+n=4", "twin-nsa-64k+n=8",
    ]  # fmt: skip


def test_text_and_config_give_the_same_variant():
    [entry] = with_variants(DENSE, methods=["quest:512,reading=kernel,dense_layers=none"])
    [_, written] = entry["variants"]
    assert written == {"method": {"name": "quest", "budget": 512, "reading": "kernel", "dense_layers": []}}


def test_a_method_without_a_budget_is_told_by_its_options():
    listed = {"name": "xattention", "tau": [0.8, 0.9]}
    swept = [{"name": "one", "path": DENSE, "variants": [{"method": listed}]}]
    assert names(swept) == ["one+xattention,tau=0.8", "one+xattention,tau=0.9"]
    [entry] = with_variants(DENSE, methods=["xattention:tau=.8,stride=8"])
    assert entry["variants"][1] == {"method": {"name": "xattention", "tau": 0.8, "stride": 8}}
    models = with_variants([DENSE], methods=["xattention", "xattention:tau=.8", "power-attention:window=3"])
    assert names(models)[1:] == [
        "twin-full-64k+xattention", "twin-full-64k+xattention,tau=0.8",
        "twin-full-64k+power-attention,window=3",
    ]  # fmt: skip


def test_a_share_of_a_method_with_weights_takes_them_along(tmp_path):
    gate = {"model.layers.0.self_attn.attn_gate.attngate_linear_q.weight": torch.zeros(2, 2, 8, 8)}
    save_file(gate, tmp_path / "gate.safetensors")
    weights = f"{tmp_path}/gate.safetensors"
    [entry] = with_variants(DENSE, methods=[f"seer-attention:10%,48,block=24,weights={weights}"])
    assert entry["variants"][1] == {
        "method": {"name": "seer-attention", "budget": ["10%", 48], "block": 24, "weights": weights}
    }


def test_large_and_small_values_have_names_of_their_own():
    listed = {"name": "anchor-attention", "theta": [1e20, 1e-20]}
    swept = [{"name": "one", "path": DENSE, "variants": [{"method": listed}]}]
    assert names(swept) == ["one+anchor-attention,theta=1e20", "one+anchor-attention,theta=1e-20"]


def test_names_that_would_be_too_long_are_cut_and_told_apart():
    every = "first=4,local=8,dense_layers=0+1+2+3+4+5+6+7+8+9+10+11+12+13+14+15+16+17+18+19+20"
    found = names(with_variants(DENSE, methods=[f"exact-top:64,{every}", f"exact-top:64,{every}+21"]))[1:]
    assert len(set(found)) == 2
    for name in found:
        assert len(name) <= 80
        assert name.startswith("twin-full-64k+exact-top@64,")


def test_without_flags_nothing_changes():
    assert with_variants([DENSE]) == [{"name": "twin-full-64k", "path": DENSE}]


def test_a_model_that_is_not_here_yet_takes_both(tmp_path):
    models = with_variants("some/hub-id", methods=["quest:512"], sweeps=["rms_norm_eps=0.1"])
    assert len(models[0]["variants"]) == 3


@pytest.mark.parametrize(
    ("models", "methods", "sweeps", "message"),
    [
        ([NSA], ["quest:512"], [], "--method quest:512: the models are sparse already: zoo:twin-nsa-64k"),
        ([DENSE], [], ["nsa_window=4"], "--sweep nsa_window=4: NSA's fields act in models with NSA alone"),
        ([DENSE], ["quest"], [], "--method quest: a method is written NAME:BUDGET"),
        ([DENSE], ["xattention:512"], [], "--method xattention:512: xattention has no budget, got '512'"),
        ([DENSE], ["quest:"], [], "--method quest:: a method is written NAME:BUDGET"),
        ([DENSE], ["quest@512"], [], "--method quest@512: unknown method 'quest@512': write quest:512"),
        ([DENSE], ["qest:512"], [], "--method qest:512: unknown method 'qest', did you mean quest?"),
        ([DENSE], ["quest:512,pages=2"], [], "unknown option 'pages', did you mean page?"),
        ([NSA], [], ["nsa_window"], "--sweep nsa_window: expected KEY=V1,V2"),
        ([NSA], [], ["nsa_window=[1"], "--sweep nsa_window=[1: the values are"),
    ],
)
def test_texts_that_fit_nothing_are_refused(models, methods, sweeps, message):
    with pytest.raises(UserError) as caught:
        with_variants(models, methods=methods, sweeps=sweeps)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([], "the list is empty"),
        ([{"name": "x", "set": {"nsa_window": [1, 2]}}], "'x' would name 2 variants"),
        ([{}, {"set": {}}], "is the name of another variant already"),
        ([{"name": "store"}], "is what a file of the run's own is called"),
        ([{"method": {"name": "quest"}}], "quest: a budget is missing: KV tokens read"),
        ([{"method": {"name": "xattention", "budget": 512}}], "xattention has no budget, got 512"),
        ([{"method": {"name": "xattention", "budget": "10%"}}], "xattention has no budget, got '10%'"),
        ([{"method": {"name": "xattention", "tau": 0}}], "xattention: tau must be above 0"),
        ([{"method": {"name": "quest", "budget": 0}}], "expected a length in tokens"),
        ([{"method": {"name": "quest", "budget": [512, 512]}}], "each once"),
        ([{"method": {"name": "quest", "budget": 512, "page": 0}}], "page must be at least 1"),
    ],
)
def test_variants_are_checked_before_anything_is_loaded(variants, message):
    config = evaluate_config([{"path": DENSE, "variants": variants}], "needle_single")
    with pytest.raises(UserError) as caught:
        load_config(config)
    assert message in str(caught.value)
    assert "models[0].variants" in str(caught.value)


def test_a_model_may_not_be_called_like_a_file_of_the_run():
    with pytest.raises(UserError, match=r"models\[0\]: 'store' is what a file of the run's own is called"):
        load_config(evaluate_config([{"path": DENSE, "name": "store"}], "needle_single"))
