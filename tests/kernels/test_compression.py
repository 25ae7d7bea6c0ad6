import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels import BlockGeometry, block_view, compress_linear, compress_mean, compress_mlp, num_blocks

GEOMETRIES = [
    BlockGeometry(block=8, stride=4, select_block=8),
    BlockGeometry(block=6, stride=2, select_block=4),
    BlockGeometry(block=4, stride=4, select_block=4),
    BlockGeometry(block=1, stride=1, select_block=1),
]
LENGTHS = [1, 3, 4, 7, 8, 9, 30, 31]


def _by_definition(x: Tensor, geometry: BlockGeometry, phi) -> list[Tensor]:
    """phi of each block of each row and head: phi_k(x[i*d : i*d + l])."""
    blocks = []
    for b in range(x.shape[0]):
        for i in range(num_blocks(x.shape[1], geometry)):
            first = i * geometry.stride
            for h in range(x.shape[2]):
                blocks.append(phi(x[b, first : first + geometry.block, h]))
    return blocks


def _phis(geometry: BlockGeometry, dim: int) -> dict:
    torch.manual_seed(0)
    pe = torch.randn(geometry.block, dim, dtype=torch.float64)
    w1, b1 = torch.randn(5, geometry.block * dim).double(), torch.randn(5).double()
    w2, b2 = torch.randn(6, 5).double(), torch.randn(6).double()
    weights = (pe, w1, b1, w2, b2)
    for x in weights:
        x.requires_grad_()
    return {
        "mean": (lambda x: compress_mean(x, geometry), lambda t: t.mean(0), ()),
        "mean-pe": (lambda x: compress_mean(x, geometry, pe=pe), lambda t: (t + pe).mean(0), (pe,)),
        "linear": (lambda x: compress_linear(x, w1, geometry), lambda t: w1 @ t.flatten(), (w1,)),
        "linear-bias": (
            lambda x: compress_linear(x, w1, geometry, bias=b1),
            lambda t: w1 @ t.flatten() + b1,
            (w1, b1),
        ),
        "linear-pe-bias": (
            lambda x: compress_linear(x, w1, geometry, bias=b1, pe=pe),
            lambda t: w1 @ (t + pe).flatten() + b1,
            (pe, w1, b1),
        ),
        "mlp": (
            lambda x: compress_mlp(x, w1, w2, geometry, bias_in=b1, bias_out=b2, pe=pe),
            lambda t: w2 @ F.gelu(w1 @ (t + pe).flatten() + b1) + b2,
            weights,
        ),
    }


@pytest.mark.parametrize("phi", ["mean", "mean-pe", "linear", "linear-bias", "linear-pe-bias", "mlp"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"l{g.block}d{g.stride}")
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_definition_with_gradients(phi: str, geometry: BlockGeometry, length: int) -> None:
    dim = 3
    fast, slow, weights = _phis(geometry, dim)[phi]
    x = torch.randn(2, length, 2, dim, dtype=torch.float64, requires_grad=True)
    out = fast(x)
    assert out.shape[:3] == (2, num_blocks(length, geometry), 2)
    blocks = _by_definition(x, geometry, slow)
    if not blocks:
        assert out.numel() == 0
        return
    expected = torch.stack(blocks).view_as(out)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad((out * weight).sum(), (x, *weights)),
        torch.autograd.grad((expected * weight).sum(), (x, *weights)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_cache_grows_by_its_tail() -> None:
    geometry = GEOMETRIES[0]
    x = torch.randn(2, 40, 2, 3)
    whole, half = compress_mean(x, geometry), compress_mean(x[:, :23], geometry)
    tail = compress_mean(x[:, half.shape[1] * geometry.stride :], geometry)
    torch.testing.assert_close(torch.cat([half, tail], 1), whole)


def test_block_view_shares_memory() -> None:
    geometry = GEOMETRIES[0]
    x = torch.arange(40.0).view(1, 20, 1, 2)
    blocks = block_view(x, geometry)
    assert blocks.shape == (1, 4, 8, 1, 2)
    assert torch.equal(blocks[0, 2], x[0, 8:16])
    assert blocks.data_ptr() == x.data_ptr()
    assert block_view(x[:, :7], geometry).shape == (1, 0, 8, 1, 2)


def test_wrong_shapes_are_named() -> None:
    geometry = GEOMETRIES[0]
    x = torch.randn(1, 20, 1, 2)
    with pytest.raises(ValueError, match=r"pe must be \[l, D\] = \[8, 2\], got \[4, 2\]"):
        compress_mean(x, geometry, pe=torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"\[D_out, 16\] for l = 8 and D = 2, got \[5, 8\]"):
        compress_linear(x, torch.zeros(5, 8), geometry)
    with pytest.raises(ValueError, match="D_hidden = 5"):
        compress_mlp(x, torch.zeros(5, 16), torch.zeros(6, 4), geometry)
