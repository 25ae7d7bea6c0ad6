"""PBS-Attn against its definition."""

from __future__ import annotations

import pytest
import torch

from nsa_models.methods import MethodError, make_method
from nsa_models.methods.pbs_attn import choose

from .conftest import prompt_sets, random_row


def sets_by_definition(
    q: torch.Tensor, k: torch.Tensor, *, tau: float, block: int, segment: int
) -> list[set[int]]:
    """Of one head: q [n, d], k [n, d], logits scaled by 1/2."""
    n = len(q)
    if n <= segment:
        return [set(range(t + 1)) for t in range(n)]
    whole = n // segment * segment
    last = torch.stack([(0.5 * (k[:whole] @ q[t])).softmax(0) for t in range(max(0, n - block), n)])
    score = last.mean(0).tolist()
    order = []
    for begin in range(0, whole, segment):
        order += sorted(range(begin, begin + segment), key=lambda s: (-score[s], s))
    order += range(whole, n)
    blocks = [order[at : at + block] for at in range(0, n, block)]
    segments = [at // segment for at in range(0, n, block)]
    found = []
    for i, mine in enumerate(segments):
        mean = q[i * block : (i + 1) * block].mean(0)
        earlier = [j for j in range(len(blocks)) if segments[j] < mine]
        chosen = {j for j in range(len(blocks)) if segments[j] == mine or 0 in blocks[j]}
        if earlier:
            scores = torch.stack([0.5 * (k[blocks[j]].mean(0) @ mean) for j in earlier])
            weights = dict(zip(earlier, scores.softmax(0).tolist(), strict=True))
            total = 0.0
            for j in sorted(earlier, key=lambda j: (-weights[j], j)):
                chosen.add(j)
                total += weights[j]
                if total >= tau and tau < 1:
                    break
        keys = {s for j in chosen for s in blocks[j]}
        found += [{s for s in keys if s <= t} for t in range(i * block, min(n, (i + 1) * block))]
    return found


@pytest.mark.parametrize(("block", "segment"), [(2, 4), (3, 3), (4, 12), (2, 60)])
@pytest.mark.parametrize("tau", [0.1, 0.6, 1.0])
def test_sets_follow_the_definition(block: int, segment: int, tau: float) -> None:
    q, k = random_row(47)
    method = make_method("pbs-attn", tau=tau, block=block, segment=segment)
    for head, sets in enumerate(prompt_sets(method, q, k)):
        expected = sets_by_definition(q[0, head], k[0, head // 2], tau=tau, block=block, segment=segment)
        assert sets == expected
        assert all(method.kv_reads_least(t + 1) <= len(keys) for t, keys in enumerate(sets))


def test_block_that_reaches_the_share_is_read_and_none_behind_it() -> None:
    scores = torch.tensor([0.5, 0.3, 0.2, 1.0]).log().expand(1, 4, 4)
    of_segment = torch.arange(4)
    for tau, blocks in ((0.5, [0]), (0.51, [0, 1]), (0.9, [0, 1, 2])):
        assert choose(scores.double(), of_segment, tau)[0, 3].nonzero().flatten().tolist() == blocks
    assert not choose(scores, of_segment, 0.5)[0, 0].any()


def test_a_share_of_one_is_all_whatever_rounding_leaves() -> None:
    scores = torch.randn(8, 64, 64, generator=torch.Generator().manual_seed(0))
    of_segment = torch.arange(64) // 2
    earlier = of_segment < of_segment[:, None]
    for tau in (1.0, 1.5):
        assert torch.equal(choose(scores, of_segment, tau), earlier.expand(8, -1, -1))


def test_options_that_make_no_blocks_are_refused() -> None:
    method = make_method("pbs-attn")
    assert (method.tau, method.block, method.segment) == (0.9, 128, 256)
    for options, message in (
        ({"tau": 0}, "tau must be above 0, got 0.0"),
        ({"block": 0}, "block must be at least 1 token"),
        ({"segment": 200}, "segment must be a multiple of block = 128 tokens, got 200"),
    ):
        with pytest.raises(MethodError, match=f"pbs-attn: {message}"):
            make_method("pbs-attn", **options)
