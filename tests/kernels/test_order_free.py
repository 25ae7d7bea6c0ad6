"""Sums and products that don't depend on how they are made, against exact arithmetic."""

import math

import pytest
import torch

from nsa_kernels import block_choice, order_free
from nsa_kernels.block_choice import column_and_diagonal_sums
from nsa_kernels.order_free import block_means, products


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_and_means_are_the_exact_ones_rounded_once(dtype):
    q, k = drawn(1, 20, 2, 64, dtype=dtype), drawn(1, 30, 1, 64, seed=1, dtype=dtype)
    found = products(q, k)
    assert found.dtype == torch.float32
    for head in range(2):
        for i in range(20):
            for j in range(0, 30, 3):
                terms = [a * b for a, b in zip(q[0, i, head].tolist(), k[0, j, 0].tolist(), strict=True)]
                assert found[0, head, i, j] == torch.tensor(math.fsum(terms), dtype=torch.float64).float()
    means = block_means(k, 7)
    for block in range(5):
        some = k[0, 7 * block : 7 * block + 7, 0]
        for column, mean in zip(some.T.tolist(), means[0, block, 0], strict=True):
            exact = torch.tensor(math.fsum(column) / len(column), dtype=torch.float64)
            assert mean == exact.float()


def test_order_and_pieces_change_no_bit_of_them(monkeypatch):
    """Where float32 changes most: of the same products half and more differ in their last bits."""
    q, k = drawn(1, 200, 4, 128), drawn(1, 300, 2, 128, seed=1)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(2))
    expected = products(q, k)
    assert torch.equal(products(q[..., order], k[..., order]), expected)
    parts = [products(q[:, begin : begin + 7], k[:, :111]) for begin in range(0, 200, 7)]
    assert torch.equal(torch.cat(parts, 2), expected[..., :111])
    narrow = torch.einsum("bnhd,bshd->bhns", q, k.repeat_interleave(2, 2))
    turned = torch.einsum("bnhd,bshd->bhns", q[..., order], k.repeat_interleave(2, 2)[..., order])
    assert (narrow != turned).float().mean() > 0.3
    means, sums = block_means(k, 16), column_and_diagonal_sums(q[:, -9:], k)
    for module in (order_free, block_choice):
        monkeypatch.setattr(module, "CELLS", 100)
    assert torch.equal(block_means(k, 16), means)
    for found, whole in zip(column_and_diagonal_sums(q[:, -9:], k), sums, strict=True):
        assert torch.equal(found, whole)
