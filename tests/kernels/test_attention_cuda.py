"""The torch backend on a CUDA device (`make test-gpu`)."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from nsa_kernels import BlockGeometry, choose_backend, nsa_attention, nsa_decode
from nsa_kernels import torch_ as torch_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("masked_keys", [0, 24, 1 << 60], ids=["chunked", "mixed", "masked"])
@pytest.mark.parametrize(
    "case",
    [
        {"queries": 61},
        {"queries": 45, "lengths": [45, 3]},
        {"queries": 9, "start": [0, 41], "lengths": [9, 50]},
    ],
)
def test_agrees_with_the_oracle_on_cuda(
    masked_keys: int, case: dict, oracle: Callable, make_inputs, small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_backend, "MASKED_KEYS_GPU", masked_keys)
    inputs = make_inputs(small, **case)
    expected, expected_blocks, expected_gradients = inputs.run_with_gradients(oracle)
    out, blocks, gradients = inputs.to("cuda").run_with_gradients(partial(nsa_attention, backend="torch"))
    assert torch.equal(blocks.cpu(), expected_blocks)
    torch.testing.assert_close(out.cpu(), expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)


@pytest.mark.parametrize("masked_keys", [0, 1 << 60], ids=["chunked", "masked"])
def test_training_in_bfloat16_stays_close(
    masked_keys: int, make_inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_backend, "MASKED_KEYS_GPU", masked_keys)
    inputs = make_inputs(BlockGeometry(), queries=2048, group=4, dim=64, dtype=torch.float32)
    expected, _, expected_gradients = inputs.run_with_gradients(nsa_attention)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out, _, gradients = inputs.to("cuda").run_with_gradients(partial(nsa_attention, backend="torch"))
    assert out.dtype == torch.bfloat16
    # Rounded scores may choose other blocks for a few tokens: compare in the mean.
    assert (out.cpu() - expected).abs().mean() < 0.02 * expected.abs().mean()
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert ours.isfinite().all()
        assert (ours.cpu() - theirs).norm() < 0.1 * theirs.norm()


def test_decode_on_cuda(oracle: Callable, make_inputs, small) -> None:
    inputs = make_inputs(small, queries=1, start=50)
    expected, expected_blocks = inputs.run(oracle)
    q, *caches, gates = inputs.to("cuda").tensors
    lengths = torch.tensor([51, 51], device="cuda")
    out, blocks = nsa_decode(
        q[:, 0], *caches, gates[:, 0], geometry=small, lengths=lengths, backend="torch", return_blocks=True
    )
    torch.testing.assert_close(out.cpu(), expected[:, 0])
    assert torch.equal(blocks.cpu(), expected_blocks[:, 0])


def test_auto_takes_triton_where_it_can_compute() -> None:
    assert choose_backend(torch.device("cuda")) == "triton"
    assert choose_backend(torch.device("cuda"), torch.float32) == "torch"
