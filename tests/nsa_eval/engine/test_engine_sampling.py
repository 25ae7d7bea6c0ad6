"""Tokens drawn for many rows together are those that each row's own sampler draws."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from nsa_eval.engine._sampling import Sampler, Sampling, draw_together
from nsa_kernels.nucleus import nucleus, nucleus_plainly

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.7, top_p=0.95),
    Sampling(top_k=5),
    Sampling(temperature=1.5, top_k=40, top_p=0.5),
    Sampling(top_p=1e-6),
]


@pytest.mark.parametrize("width", [7, 1024, 5000])
def test_rows_draw_together_what_they_draw_alone(width):
    """Of every kind of request side by side."""
    asked = SAMPLINGS * 6
    logits = torch.randn(len(asked), width, generator=torch.Generator().manual_seed(width)) * 3
    alone = [Sampler(one, seed).draw(row) for seed, (one, row) in enumerate(zip(asked, logits, strict=True))]
    given = logits.to(DEVICE)
    together = draw_together(given, [Sampler(one, seed) for seed, one in enumerate(asked)])
    assert together.tolist() == alone
    assert torch.equal(given.cpu(), logits)
    assert len(set(alone)) > 3


def test_a_draw_follows_the_probabilities():
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])
    expected = torch.softmax(logits, -1)
    drawn = [Sampler(Sampling(), seed).draw(logits) for seed in range(3000)]
    found = torch.bincount(torch.tensor(drawn), minlength=4) / 3000
    assert (found - expected).abs().max() < 0.03


def test_a_nucleus_ends_where_its_share_is_reached():
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]], device=DEVICE)
    for share, expected in ((0.39, [0.4, 0.25]), (0.6, [0.3, 0.25]), (0.95, [0.1, 0.25])):
        shares = torch.full((2,), share, device=DEVICE)
        assert nucleus(probabilities, shares).tolist() == pytest.approx(expected)
        assert nucleus_plainly(probabilities, shares).tolist() == pytest.approx(expected)


def test_the_kernel_finds_the_edge_of_its_plain_twin():
    pick = torch.Generator().manual_seed(3)
    probabilities = torch.softmax(torch.randn(9, 9000, generator=pick) * 2, -1).to(DEVICE)
    shares = torch.linspace(0.1, 0.99, 9, device=DEVICE)
    assert torch.equal(nucleus(probabilities, shares), nucleus_plainly(probabilities, shares))
