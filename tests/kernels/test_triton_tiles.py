"""What all Triton kernels share, and bulk copies against plain loads."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_kernels import BlockGeometry, compress_mean
from nsa_kernels.triton.function import make_grid
from nsa_kernels.triton.prefill.compressed import compressed_forward
from nsa_kernels.triton.prefill.forced import forced_forward
from nsa_kernels.triton.prefill.select import select
from nsa_kernels.triton.prefill.selected import selected_forward
from nsa_kernels.triton.prefill.window import window_forward
from nsa_kernels.triton.tiles import bulk_copies, split_width
from nsa_kernels.types import Caches

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GEOMETRY = BlockGeometry(block=4, stride=2, select_block=16, select_count=4, window=20)
TILE = {"BM": 16, "BN": 16, "OCCUPANCY": 1, "num_warps": 4, "num_stages": 2}
TMA, POINTERS = TILE | {"TMA": 1}, TILE | {"TMA": 0}


@pytest.mark.parametrize(
    ("width", "parts"), [(16, (16, 0)), (128, (128, 0)), (192, (128, 64)), (96, (64, 32)), (80, (64, 16))]
)
def test_widths_are_cut_in_powers_of_two(width: int, parts: tuple[int, int]) -> None:
    assert split_width(width) == parts


@pytest.mark.parametrize("width", [8, 20, 112, 136])
def test_other_widths_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"head dimension {width}"):
        split_width(width)


class TestBulkCopies:
    def test_whole_rows_fit(self) -> None:
        x = torch.zeros(2, 5, 3, 16, dtype=torch.bfloat16)
        assert bulk_copies(x, x[:, 2:4], x[:, :, 1:])

    def test_a_start_or_a_row_off_sixteen_bytes_does_not(self) -> None:
        x = torch.zeros(2, 5, 3, 20, dtype=torch.bfloat16)
        assert not bulk_copies(x[..., :16])  # 40 bytes from head to head
        assert not bulk_copies(torch.zeros(2, 5, 3, 32, dtype=torch.bfloat16)[..., 4:20])
        assert not bulk_copies(torch.zeros(1, 5, 1, 16).expand(2, 5, 3, 16))


def test_stages_give_the_same_by_bulk_copies_and_by_pointers() -> None:
    torch.manual_seed(0)
    count = 70

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE)

    q, k, v = 2 * random(1, count, 4, 16), random(1, count, 2, 16), random(1, count, 2, 16)
    k_cmp, v_cmp = compress_mean(k, GEOMETRY), compress_mean(v, GEOMETRY)
    caches = Caches(k_cmp, v_cmp, k, v, k, v)
    grid = make_grid(q, caches, geometry=GEOMETRY, start=0, lengths=None, scale=0.25)
    results = []
    for config in (TMA, POINTERS):
        o_cmp, lse = compressed_forward(q, k_cmp, v_cmp, grid, config=config)
        blocks = select(q, k_cmp, lse, grid, config=config)
        o_win, _ = window_forward(q, k, v, grid, config=POINTERS)
        forced = forced_forward(q, k, v, grid, config=config)
        gates = torch.full((1, count, 4, 3), 0.5, device=DEVICE)
        selected = selected_forward(
            q, k, v, blocks, gates, o_cmp, o_win, *forced, grid, save=True, config=config
        )
        results.append((o_cmp, lse, blocks, *forced, *selected))
    assert (results[0][2][0, -1] >= 0).all()  # the last query had to choose
    for by_bulk, by_pointer in zip(*results, strict=True):
        torch.testing.assert_close(by_bulk, by_pointer)


def test_tensors_off_sixteen_bytes_take_pointers_by_themselves() -> None:
    torch.manual_seed(0)
    wide = torch.randn(1, 30, 2, 18, device=DEVICE)
    q, k = wide[..., :16], wide[..., 2:]  # rows of 72 bytes, and k starts 8 bytes late
    grid = make_grid(q, Caches(*([k] * 6)), geometry=GEOMETRY, start=0, lengths=None, scale=0.25)
    assert not bulk_copies(k)
    out, _ = compressed_forward(q, k, k, grid, config=TMA)
    expected, _ = compressed_forward(q.contiguous(), k.contiguous(), k.contiguous(), grid, config=POINTERS)
    torch.testing.assert_close(out, expected)
