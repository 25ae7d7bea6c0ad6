"""Norm, rotation and placing of heads by kernel against their plain twins."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels.heads import norm_rotate_plainly
from nsa_kernels.triton import heads

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16] if DEVICE == "cuda" else [torch.float32]


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("width", "turning"), [(8, 8), (24, 24), (64, 64), (192, 192), (64, 32), (24, 6), (16, 12), (192, 64)]
)
@pytest.mark.parametrize("alike", [True, False], ids=["one position for all rows", "each its own"])
@pytest.mark.parametrize(("norm", "rotate"), [(True, True), (True, False), (False, True)])
def test_heads_come_out_as_those_of_the_plain_twin(dtype, width, turning, alike, norm, rotate):
    wide = drawn(2, 5, 3, 3, width, dtype=dtype)
    x = wide.unbind(2)[1]  # as one of several sets out of one projection: in strides
    weight = drawn(width, seed=1, dtype=dtype) if norm else None
    angles = drawn(1 if alike else 2, 5, 1, turning // 2, seed=2)
    angles = torch.cat([angles, angles], -1)
    cos, sin = (angles.cos(), angles.sin()) if rotate else (None, None)
    found = heads.norm_rotate(x, weight, 1e-6, cos, sin)
    expected = norm_rotate_plainly(x, weight, 1e-6, cos, sin)
    close = 1e-5 if dtype == torch.float32 else 1.6e-2
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    assert found.is_contiguous()


def test_halves_with_angles_of_their_own_are_rotated_by_them():
    """YaRN and its like scale alike, but nothing here relies on it."""
    x, cos, sin = drawn(1, 4, 2, 16), drawn(1, 4, 1, 16, seed=1), drawn(1, 4, 1, 16, seed=2)
    expected = norm_rotate_plainly(x, None, 0.0, cos, sin)
    torch.testing.assert_close(heads.norm_rotate(x, None, 0.0, cos, sin), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_entry_goes_into_its_rows_column_and_nowhere_else(dtype):
    buffer = drawn(3, 7, 2, 24, dtype=dtype)
    new = drawn(3, 1, 4, 2, 24, seed=1, dtype=dtype).unbind(2)[1]  # one of several sets out of one projection
    columns = torch.tensor([6, 0, 3], device=DEVICE)
    expected = buffer.clone()
    expected[torch.arange(3, device=DEVICE), columns] = new[:, 0]
    heads.place(buffer, new, columns)
    assert torch.equal(buffer, expected)
