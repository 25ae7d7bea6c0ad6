"""Sparse Frontier's formulas, against sums done by hand."""

import math

import pytest

from nsa_eval.budgets.cost_model import (
    LEVELS,
    Shape,
    decode_reads,
    index_elements,
    index_flops,
    prefill_flops,
)

TINY = Shape(hidden=4, head=2, heads=2, kv_heads=1, layers=3, mlp=5, vocabulary=7)
FIELDS = {
    "hidden_size": "4",
    "head_dim": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "intermediate_size": 5,
    "vocab_size": "7",
}


def test_flops_of_a_prompt_are_projections_cells_mlp_and_both_ends():
    # A layer: 2*10*4*(8 + 4) = 960; .5*2*100*(8 + 3) = 1100; 6*10*4*5 + 2*10*5 = 1300. Ends: 80 + 560.
    assert prefill_flops(TINY, 10, 0.5) == 3 * (960 + 1100 + 1300) + 80 + 560
    assert prefill_flops(TINY, 10, 1.0) - prefill_flops(TINY, 10, 0.5) == 3 * 1100
    assert prefill_flops(TINY, 10, 0.5, index=7) == prefill_flops(TINY, 10, 0.5) + 7


def test_a_step_reads_its_part_of_the_cache_and_the_weights():
    # Weights: 3 * (2*4*2*(2 + 1) + 3*4*5) + 4*7 = 352. Cache: 2*3*10*2*1*.5 = 60.
    assert TINY.weights == 352
    assert decode_reads(TINY, 10, 0.5) == 60 + 352
    assert decode_reads(TINY, 10, 0.5, index=5, rows=4) == 60 + 5 + 88


def test_what_choosing_costs_goes_by_declared_vectors():
    # Two extremes of each of five pages are the paper's 2 d_h n_kv L / p of Quest: 2*2*1*10/2 in each layer.
    assert index_elements(TINY, 2 * 5) == 3 * 2 * 2 * 1 * 10 / 2
    assert index_flops(TINY, 10) == 2 * 3 * 2 * 2 * 10


def test_the_levels_are_the_papers_sparsities():
    papers = (0, 0.33, 0.5, 0.6, 0.7, 0.8, 0.87, 0.9, 0.93, 0.95)
    assert len(LEVELS) == len(papers)
    for density, sparsity in zip(LEVELS, papers, strict=True):
        assert math.isclose(1 - density, sparsity, abs_tol=0.005)


def test_a_shape_is_read_from_a_configs_fields():
    assert Shape.of(FIELDS) == TINY
    assert Shape.of({key: value for key, value in FIELDS.items() if key != "head_dim"}).head == 2
    gpt2 = {"n_embd": 4, "n_head": 2, "n_layer": 3, "n_inner": 5, "vocab_size": 7}
    assert Shape.of(gpt2) == Shape(hidden=4, head=2, heads=2, kv_heads=2, layers=3, mlp=5, vocabulary=7)


@pytest.mark.parametrize("missing", ["hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"])
def test_without_one_of_its_sizes_there_is_no_shape(missing):
    assert Shape.of({key: value for key, value in FIELDS.items() if key != missing}) is None


def test_experts_are_not_taken_for_one_mlp():
    assert Shape.of({**FIELDS, "num_local_experts": 8}) is None
