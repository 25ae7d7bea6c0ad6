"""TidalDecode against its definition: two layers choose, the others read what was chosen last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from nsa_models.methods import MethodError, attach, make_method

from .conftest import Rows, as_sets, random_row, read_alone, read_sets, tokens


def best_keys(q: torch.Tensor, k: torch.Tensor, t: int, head: int, count: int) -> set[int]:
    products = [float(q[0, head, t] @ k[0, head // 2, s]) for s in range(t + 1)]
    return set(sorted(range(t + 1), key=lambda s: (-products[s], s))[:count])


def test_layers_behind_read_what_was_chosen_last_in_the_same_step() -> None:
    q, k = random_row(30)
    method = make_method("tidal-decode", 5, choosing=[1, 3], dense_layers=[0])
    found = read_sets(method, q, k, prompt=20, layers=(1, 2, 3, 4))
    for t in range(20, 30):
        expected = [best_keys(q, k, t, head, 5) for head in range(4)]
        assert as_sets(found[1][t]) == as_sets(found[3][t]) == [{*range(t + 1)}] * 4
        assert as_sets(found[2][t]) == as_sets(found[4][t]) == expected
    assert any(t not in keys for t in range(20, 30) for keys in as_sets(found[2][t]))  # its own isn't forced


def test_a_second_choice_replaces_the_first(make_model: Callable[..., PreTrainedModel]) -> None:
    model, row = make_model("llama", num_hidden_layers=4), tokens(40)

    def last(choosing: list[int]) -> torch.Tensor:
        method = make_method("tidal-decode", 5, choosing=choosing, dense_layers=[0])
        with attach(model, method) as attached:
            out = read_alone(model, attached, row, 3)
            reads = [layer.counts.read for layer in attached.reads.last]
        assert reads == [4 * (40 if layer in (0, *choosing) else 5) for layer in range(4)]
        return out[-1]

    assert (last([1]) - last([1, 2])).abs().max() > 1e-3


def test_nothing_of_a_step_is_left_for_the_next(make_model: Callable[..., PreTrainedModel]) -> None:
    """Rows of one batch, at unequal lengths, never read another's or an earlier choice."""
    model = make_model("decoder")
    method = make_method("tidal-decode", 5, choosing=[1], dense_layers=[0])
    many = [tokens(30, seed=2), tokens(17, seed=3)]
    with attach(model, method) as attached:
        alone = [read_alone(model, attached, row, 4) for row in many]
        rows = Rows(model, 2, attached)
        rows.feed([row[:-4] for row in many])
        for step in range(4):
            made = rows.feed([row[len(row) - 4 + step][None] for row in many], decode=True)
            for row, logits in enumerate(made):
                torch.testing.assert_close(logits[0], alone[row][len(many[row]) - 4 + step])


def test_permuting_cached_pairs_leaves_a_step_unchanged() -> None:
    q, k = random_row(21)
    method = make_method("tidal-decode", 5, choosing=[0], dense_layers=[])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    moved = k[:, :, [*order, 20]]
    one = read_sets(method, q, k, prompt=20, layers=(0, 1))[1][20]
    two = read_sets(method, q, moved, prompt=20, layers=(0, 1))[1][20]
    for here, there in zip(as_sets(one), as_sets(two), strict=True):
        assert {[*order, 20][s] for s in there} == here


def test_layers_that_a_model_does_not_have_are_refused(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model("llama")
    with pytest.raises(MethodError, match="layer 13 can't choose: the model has 3; set choosing"):
        attach(model, make_method("tidal-decode", 256))
    with attach(model, make_method("tidal-decode", 256, choosing=[2])) as attached:
        assert attached.layers == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choosing": []}, "choosing must be rising layer numbers from 0, one at least"),
        ({"choosing": [13, 2]}, "choosing must be rising"),
        ({"choosing": [1, 13]}, "choosing must not name dense layers"),
        ({"choosing": [3]}, "dense_layers must have all layers before 3, the first that chooses"),
    ],
)
def test_parameters_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=f"tidal-decode: {message}"):
        make_method("tidal-decode", 256, **options)
