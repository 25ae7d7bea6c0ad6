"""Mustafar against its definition: each old token's key and value with its largest elements alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.methods import MethodError, attach, make_method
from nsa_models.methods._block import attend
from nsa_models.methods._placement import Placement
from nsa_models.methods.mustafar import largest

from .conftest import random_row, read_alone, tokens


def pruned(x: Tensor, count: int) -> Tensor:
    """One vector with its largest elements, the others 0."""
    order = sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))
    return torch.stack([x[i] if i in order[:count] else torch.zeros_like(x[i]) for i in range(len(x))])


@pytest.mark.parametrize(("keys", "values", "local"), [(3, 0, 4), (2, 5, 0), (8, 1, 2)])
def test_a_step_follows_the_definition(keys: int, values: int, local: int) -> None:
    q, k = random_row(20)
    v = random_row(20, seed=5)[1]
    method = make_method("mustafar", keys, value_elements=values, local=local)
    t = 19
    place = Placement.bottom_right(1, 1, 20, q.device)
    out, read = attend(method, q[:, :, t:], k, v, place, scaling=0.5, layer=0, rotate=None)
    assert int(read) == 4 * 20
    for head in range(4):
        seen = [
            (k[0, head // 2, s], v[0, head // 2, s])
            if t - s <= local
            else (pruned(k[0, head // 2, s], keys), pruned(v[0, head // 2, s], values or keys))
            for s in range(20)
        ]
        weights = torch.stack([0.5 * q[0, head, t] @ key for key, _ in seen]).softmax(-1)
        expected = sum(weight * value for weight, (_, value) in zip(weights, seen, strict=True))
        torch.testing.assert_close(out[0, head, 0], expected)


def test_rows_of_a_batch_have_their_own_latest_tokens() -> None:
    q, k = random_row(20)
    method = make_method("mustafar", 2, local=3)
    twice = [x.expand(2, -1, -1, -1) for x in (q[:, :, 19:], k, k)]
    place = Placement(positions=torch.tensor([[19], [11]]))
    out, _ = attend(method, *twice, place, scaling=0.5, layer=0, rotate=None)
    alone, _ = attend(
        method, q[:, :, 19:], k[:, :, :12], k[:, :, :12], Placement(positions=torch.tensor([[11]])),
        scaling=0.5, layer=0, rotate=None,
    )  # fmt: skip
    torch.testing.assert_close(out[1:], alone)


@pytest.mark.parametrize(("sparsity", "kept"), [(0.5, 65), (0.7, 40), (0.0, 128), (0.99, 3)])
def test_sparsity_of_the_authors_in_elements(sparsity: float, kept: int) -> None:
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
    bar = x.abs().kthvalue(max(1, int(sparsity * 128)), dim=-1, keepdim=True).values
    assert torch.equal(x.abs() >= bar, largest(x, kept))


def test_prompts_are_dense_and_pieces_change_nothing(make_model: Callable[..., PreTrainedModel]) -> None:
    model, row = make_model("llama"), tokens(40)
    dense = read_alone(model, None, row, 0)
    with attach(model, make_method("mustafar", 2, local=4)) as attached:
        assert torch.equal(read_alone(model, attached, row, 0), dense)


def test_equal_magnitudes_go_to_the_lower_index() -> None:
    assert largest(torch.tensor([1.0, -1.0, 1.0, 2.0]), 2).tolist() == [True, False, False, True]


@pytest.mark.parametrize("field", ["value_elements", "local"])
def test_parameters_out_of_range_are_refused(field: str) -> None:
    options: dict[str, Any] = {field: -1}
    with pytest.raises(MethodError, match=f"mustafar: {field} must be at least 0, got -1"):
        make_method("mustafar", 8, **options)
