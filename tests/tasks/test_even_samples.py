"""A limit on a grid: every length and depth gets its share, and a larger sample holds a smaller one."""

from collections import Counter

import pytest

from nsa_tasks import family_of
from nsa_tasks._grid import even_order
from nsa_tasks.family import Size


def shares(indices, extents):
    """How often each value of each axis occurs, and each cell."""
    lengths, depths, samples = extents
    cells = Counter(index // samples for index in indices)
    rows = Counter(index // samples // depths for index in indices)
    columns = Counter(index // samples % depths for index in indices)
    return (
        [rows[i] for i in range(lengths)],
        [columns[i] for i in range(depths)],
        [cells[i] for i in range(lengths * depths)],
    )


@pytest.mark.parametrize(
    "extents", [(1, 1, 1), (3, 11, 4), (2, 2, 1), (4, 6, 2), (5, 5, 3), (1, 7, 1), (6, 1, 2)]
)
def test_any_beginning_gives_every_row_its_share(extents):
    order = even_order(extents)
    assert sorted(order) == list(range(extents[0] * extents[1] * extents[2]))
    for count in range(1, len(order) + 1):
        for share in shares(order[:count], extents):
            assert max(share) - min(share) <= 1, (count, share)


def test_a_small_sample_has_both_ends_and_the_middle():
    lengths, depths, _ = zip(
        *((i // 44, i // 4 % 11, i % 4) for i in even_order((3, 11, 4))[:6]), strict=True
    )
    assert sorted(set(lengths)) == [0, 1, 2]
    assert {0, 5, 10} <= set(depths)
    assert len(set(depths)) == 6


def test_a_family_samples_its_grid_in_the_order_of_its_documents():
    family = family_of("needle_single")
    params = family.resolve("needle_single", {"lengths": [512, 1024, 2048], "depths": 11, "samples": 4})
    assert family.grid(params) == (3, 11, 4)
    six, twenty = family.sample(params, 6), family.sample(params, 20)
    assert list(six) == sorted(six)
    assert len(twenty) == 20
    assert set(six) < set(twenty)  # so that answers are used again
    assert family.sample(params, 10_000) == tuple(range(132))


def test_without_a_grid_the_first_documents_are_taken(monkeypatch):
    family = family_of("needle_single")
    monkeypatch.setattr(type(family), "grid", lambda self, params: None)
    monkeypatch.setattr(type(family), "size", lambda self, params: Size(5, 50))
    assert family.sample(None, 3) == (0, 1, 2)
    assert family.sample(None, 9) == (0, 1, 2, 3, 4)
