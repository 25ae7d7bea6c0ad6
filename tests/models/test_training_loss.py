"""The chunked loss: torch's cross-entropy and its gradients, without [tokens, vocabulary] at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from nsa_models.train import loss
from nsa_models.train.loss import token_losses

TOKENS, WIDTH, VOCABULARY = 50, 12, 31


def some(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, output weights, targets, and a weight for each token's loss."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, generator=generator).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden, weight, targets, torch.rand(TOKENS, dtype=dtype, generator=generator)


@pytest.mark.parametrize("chunk", [1, 7, 25, TOKENS, 1000])
def test_losses_and_gradients_are_the_plain_ones(chunk: int) -> None:
    hidden, weight, targets, factors = some(torch.float64)
    got = token_losses(hidden, weight, targets, chunk=chunk)
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(got, plain, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad((got * factors).sum(), (hidden, weight))
    expected = torch.autograd.grad((plain * factors).sum(), (hidden, weight))
    torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, targets, _ = some(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: token_losses(h, w, targets, chunk=20), (hidden, weight))


def test_float32_stays_close_to_float64() -> None:
    hidden, weight, targets, factors = some(torch.float32)
    losses = token_losses(hidden, weight, targets, chunk=16)
    (losses * factors).sum().backward()
    assert losses.dtype == torch.float32
    exact, precise, _, _ = (x.detach().double().requires_grad_() for x in (hidden, weight, factors, factors))
    (F.cross_entropy(exact @ precise.T, targets, reduction="none") * factors.double()).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), precise.grad, rtol=1e-4, atol=1e-5)


def test_autocast_multiplies_in_its_dtype_and_sums_in_float32() -> None:
    hidden, weight, targets, _ = some(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = token_losses(hidden, weight, targets, chunk=16)
        plain = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, plain)
    grads = torch.autograd.grad(losses.mean(), (hidden, weight))
    expected = torch.autograd.grad(plain.mean(), (hidden, weight))
    assert [grad.dtype for grad in grads] == [torch.float32, torch.float32]
    torch.testing.assert_close(grads, expected, rtol=0.05, atol=2e-3)


def test_logits_of_all_tokens_never_exist() -> None:
    hidden, weight, targets, _ = some(torch.float32)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        token_losses(hidden, weight, targets, chunk=10).sum().backward()
    assert largest == max(10 * VOCABULARY, TOKENS * WIDTH)


def test_one_compilation_serves_all_lengths() -> None:
    torch._dynamo.reset()
    counters.clear()
    hidden, weight, targets, _ = some(torch.float32)
    compiled = {f: torch.compile(f, dynamic=True, backend="eager") for f in (loss._read, loss._slope)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_fused", compiled.__getitem__)
        for tokens in (50, 40, 31, 20):
            states, wanted = hidden[:tokens].clone(), targets[:tokens].clone()
            got = token_losses(states, weight, wanted, chunk=17, compiled=True)
            plain = F.cross_entropy(states @ weight.T, wanted, reduction="none")
            torch.testing.assert_close(got, plain)
            got.sum().backward()
    assert counters["stats"]["unique_graphs"] == 2  # the forward's and the backward's
