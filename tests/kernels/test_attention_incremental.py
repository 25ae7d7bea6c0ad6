"""One-shot prefill, prefill in pieces and token-by-token decode are the same attention."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from nsa_kernels import available_backends, nsa_attention, nsa_decode, num_blocks


def _prefix(inputs, first: int, last: int) -> tuple:
    """Queries first..last-1 against the caches as they stand after token last-1."""
    q, *caches, gates = inputs.tensors
    blocks = num_blocks(last, inputs.geometry)
    caches = [x[:, :blocks] if i < 2 else x[:, :last] for i, x in enumerate(caches)]
    return (q[:, first:last], *caches, gates[:, first:last])


@pytest.mark.parametrize("pieces", [[30, 30], [1, 59], [59, 1], [7, 8, 9, 36], [1] * 60])
def test_prefill_in_pieces_equals_one_shot(
    pieces: list[int], attention: Callable, make_inputs, small
) -> None:
    inputs = make_inputs(small, queries=60)
    expected, expected_blocks = inputs.run(attention)
    done = 0
    for piece in pieces:
        tensors = _prefix(inputs, done, done + piece)
        out, blocks = attention(*tensors, geometry=small, start=done, return_blocks=True)
        torch.testing.assert_close(out, expected[:, done : done + piece])
        assert torch.equal(blocks, expected_blocks[:, done : done + piece])
        done += piece


@pytest.fixture(params=[name for name in available_backends() if name != "triton"])
def decode(request) -> Callable:
    return partial(nsa_decode, backend=request.param)


@pytest.mark.parametrize("value_dim", [4, 6])
def test_decode_equals_prefill(
    value_dim: int, decode: Callable, oracle: Callable, make_inputs, small
) -> None:
    inputs = make_inputs(small, queries=60, value_dim=value_dim)
    expected, expected_blocks = inputs.run(oracle)
    for t in range(60):
        q, *caches, gates = _prefix(inputs, t, t + 1)
        lengths = torch.tensor([t + 1] * 2)
        out, blocks = decode(
            q[:, 0], *caches, gates[:, 0], geometry=small, lengths=lengths, return_blocks=True
        )
        torch.testing.assert_close(out, expected[:, t])
        assert torch.equal(blocks, expected_blocks[:, t])


def test_decode_of_rows_of_different_lengths(decode: Callable, oracle: Callable, make_inputs, small) -> None:
    lengths = [60, 1, 0, 33]
    inputs = make_inputs(small, queries=60, batch=4)
    expected, expected_blocks = inputs.run(oracle)
    last = [max(n - 1, 0) for n in lengths]
    rows = torch.arange(4)
    q, *caches, gates = inputs.tensors
    poisoned = [x.clone() for x in caches]
    for i, x in enumerate(poisoned):
        for b, n in enumerate(lengths):
            x[b, num_blocks(n, small) if i < 2 else n :] = torch.nan
    out, blocks = decode(
        q[rows, last],
        *poisoned,
        gates[rows, last],
        geometry=small,
        lengths=torch.tensor(lengths),
        return_blocks=True,
    )
    for b, n in enumerate(lengths):
        if n:
            torch.testing.assert_close(out[b], expected[b, n - 1])
            assert torch.equal(blocks[b], expected_blocks[b, n - 1])
        else:
            assert out[b].abs().max() == 0
            assert (blocks[b] == -1).all()


def test_decode_has_gradients(decode: Callable, oracle: Callable, make_inputs, small) -> None:
    inputs = make_inputs(small, queries=1, start=50)
    _, _, expected = inputs.run_with_gradients(oracle)

    def as_prefill(q, *rest, start, lengths, **kwargs):
        *caches, gates = rest
        lengths = torch.tensor([51, 51])
        out, blocks = decode(q[:, 0], *caches, gates[:, 0], lengths=lengths, **kwargs)
        return out[:, None], blocks[:, None]

    _, _, gradients = inputs.run_with_gradients(as_prefill)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_cache_may_be_longer_than_the_queries(attention: Callable, make_inputs, small) -> None:
    inputs = make_inputs(small, queries=60)
    expected, _ = inputs.run(attention)
    q, *caches, gates = inputs.tensors
    out, _ = nsa_attention(q[:, 20:40], *caches, gates[:, 20:40], geometry=small, start=20)
    torch.testing.assert_close(out, expected[:, 20:40])
