"""Right padding influences nothing, whatever it holds."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from nsa_kernels import num_blocks

LENGTHS = [50, 1, 23, 0, 8]


def _poison(inputs, value: float):
    """The inputs with `value` in every place that is padding."""
    tensors = [x.clone() for x in inputs.tensors]
    for i, x in enumerate(tensors):
        for b, length in enumerate(LENGTHS):
            x[b, num_blocks(length, inputs.geometry) if i in (1, 2) else length :] = value
    return replace(inputs, tensors=tuple(tensors))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_padding_may_hold_anything(value: float, attention: Callable, make_inputs, small) -> None:
    clean = make_inputs(small, queries=50, batch=5, lengths=LENGTHS)
    out, blocks, gradients = _poison(clean, value).run_with_gradients(attention)
    expected, expected_blocks, expected_gradients = clean.run_with_gradients(attention)
    assert torch.equal(out, expected)
    assert torch.equal(blocks, expected_blocks)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        out, blocks = _poison(clean, value).run(attention)
    torch.testing.assert_close(out, expected)
    assert torch.equal(blocks, expected_blocks)


def test_a_row_is_what_it_is_alone(attention: Callable, make_inputs, small) -> None:
    inputs = make_inputs(small, queries=50, batch=5, lengths=LENGTHS)
    out, blocks = inputs.run(attention)
    for b, length in enumerate(LENGTHS):
        assert out[b, length:].abs().sum() == 0
        assert (blocks[b, length:] == -1).all()
        if length:
            count = num_blocks(length, small)
            tensors = [x[b : b + 1, : count if i in (1, 2) else length] for i, x in enumerate(inputs.tensors)]
            alone, alone_blocks = attention(*tensors, geometry=small, return_blocks=True)
            torch.testing.assert_close(out[b, :length], alone[0])
            assert torch.equal(blocks[b, :length], alone_blocks[0])


def test_padding_gets_no_gradient(attention: Callable, make_inputs, small) -> None:
    inputs = make_inputs(small, queries=50, batch=5, lengths=LENGTHS)
    _, _, gradients = _poison(inputs, torch.nan).run_with_gradients(attention)
    for i, gradient in enumerate(gradients):
        assert gradient.isfinite().all()
        for b, length in enumerate(LENGTHS):
            first = num_blocks(length, small) if i in (1, 2) else length
            assert gradient[b, first:].abs().sum() == 0


def test_gradients_are_finite_where_a_branch_is_empty(attention: Callable, make_inputs, small) -> None:
    _, _, gradients = make_inputs(small, queries=small.block - 1).run_with_gradients(attention)
    assert all(gradient.isfinite().all() for gradient in gradients)
