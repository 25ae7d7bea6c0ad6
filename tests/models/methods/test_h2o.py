"""H2O against its definition, read token by token in plain Python."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from nsa_models.methods import Memories, MethodError, make_method
from nsa_models.methods._memory import Memory
from nsa_models.methods.h2o import H2O, _Heavy

from .conftest import as_sets, causal_weights, random_row, read_sets


def best(scores: dict[int, float], count: int) -> set[int]:
    """The highest scores, of equal ones the lower index."""
    return set(sorted(scores, key=lambda s: (-scores[s], s))[:count])


def weights_over(q: Tensor, k: Tensor, t: int, seen: set[int], group: int) -> dict[int, float]:
    """Attention that query t gives to the keys that it sees, summed over the two heads of a group."""
    given = dict.fromkeys(seen, 0.0)
    order = sorted(seen)
    for head in (2 * group, 2 * group + 1):
        logits = 0.5 * (k[0, group, order] @ q[0, head, t])
        for s, weight in zip(order, logits.softmax(-1).tolist(), strict=True):
            given[s] += weight
    return given


def dropping(
    q: Tensor, k: Tensor, prompt: int, *, heavy: int, recent: int, first: int
) -> list[list[set[int]]]:
    """What each decoded token reads, by group: a cache that is cut after the prompt and after each step."""
    steps = []
    for group in (0, 1):
        scores: dict[int, float] = {}
        for t in range(prompt):
            for s, weight in weights_over(q, k, t, {*range(t + 1)}, group).items():
                scores[s] = scores.get(s, 0.0) + weight
        read = []
        for t in range(prompt, q.shape[2]):
            if len(scores) > heavy + recent + first:
                stay = {s for s in scores if s < first or s >= t - recent}
                stay |= best({s: a for s, a in scores.items() if s not in stay}, heavy)
                scores = {s: scores[s] for s in stay}
            read.append({*scores, t})
            for s, weight in weights_over(q, k, t, read[-1], group).items():
                scores[s] = scores.get(s, 0.0) + weight
        steps.append(read)
    return steps


def masking(
    q: Tensor, k: Tensor, prompt: int, *, heavy: int, recent: int, first: int
) -> list[list[set[int]]]:
    """The same for "mask": a window that counts the coming token, over a cache that keeps everything."""
    steps = []
    for group in (0, 1):
        scores = dict.fromkeys(range(prompt), 0.0)
        for t in range(prompt):
            for s, weight in weights_over(q, k, t, {*range(t + 1)}, group).items():
                scores[s] += weight
        read = []
        for t in range(prompt, q.shape[2]):  # t tokens are there, token t comes
            if t <= heavy + recent + first:
                seen = {*range(t + 1)}
            else:
                candidates = {s: scores[s] for s in range(first, t - recent)}
                chosen = best(candidates, heavy) | {*range(first)}
                seen = chosen | {s for s in range(t + 1) if s > t - recent}
                for s in range(t - recent):
                    if s not in chosen:
                        scores[s] = 0.0
            read.append(seen)
            scores[t] = 0.0
            for s, weight in weights_over(q, k, t, seen, group).items():
                scores[s] += weight
        steps.append(read)
    return steps


SIZES = [(30, 4, 5, 0), (30, 3, 1, 2), (6, 4, 5, 0), (12, 2, 9, 1), (1, 3, 3, 0)]


@pytest.mark.parametrize("variant", ["drop", "mask"])
@pytest.mark.parametrize(("prompt", "heavy", "recent", "first"), SIZES)
@pytest.mark.parametrize("seed", [0, 1])
def test_sets_follow_the_definition_step_by_step(
    variant: str, prompt: int, heavy: int, recent: int, first: int, seed: int
) -> None:
    q, k = random_row(48, seed=seed)
    method = make_method("h2o", heavy + recent + first, recent=recent, first=first, variant=variant)
    plain = dropping if variant == "drop" else masking
    expected = plain(q, k, prompt, heavy=heavy, recent=recent, first=first)
    found = read_sets(method, q, k, prompt=prompt)[0]
    for number, t in enumerate(range(prompt, 48)):
        assert as_sets(found[t]) == [expected[group][number] for group in (0, 0, 1, 1)], t


def test_small_case_keeps_the_heavy_key_and_the_recent_ones() -> None:
    method = H2O(budget=3, recent=2)
    after = method._after(torch.tensor([[0.9, 0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), prompt=4)
    assert after.kept is not None
    assert as_sets(after.kept) == [{0, 2, 3}]


def test_equal_scores_go_to_the_lower_index() -> None:
    method = H2O(budget=4, recent=2)
    after = method._after(torch.full((1, 6), 0.5), torch.ones(1, 6, dtype=torch.bool), prompt=6)
    assert after.kept is not None
    assert as_sets(after.kept) == [{0, 1, 4, 5}]


def test_a_dropped_key_never_comes_back_and_a_masked_one_may_after_a_step() -> None:
    q, k = random_row(60, seed=3)
    found = read_sets(make_method("h2o", 10, recent=4), q, k, prompt=20)[0]
    for head in range(4):
        sets = [as_sets(found[t])[head] for t in range(20, 60)]
        gone = [{*range(t)} - sets[t - 20] for t in range(20, 60)]
        assert all(one <= two for one, two in pairwise(gone))
    k[:, :, 20:] *= 4  # later keys that outdo those of the prompt
    found = read_sets(make_method("h2o", 10, recent=4, variant="mask"), q, k, prompt=20)[0]
    returned = 0
    for t in range(20, 58):
        for one, two in zip(as_sets(found[t]), as_sets(found[t + 1]), strict=True):
            assert t - 4 not in one  # it has just left the window, and isn't a candidate yet
            returned += t - 4 in two
            assert two - one <= {t - 4, t + 1}
    assert returned


def test_pieces_of_a_prompt_sum_to_the_same_scores() -> None:
    q, k = random_row(40)
    method = make_method("h2o", 9, recent=4)
    whole = read_sets(method, q, k, prompt=30)[0]
    pieces = read_sets(method, q, k, prompt=30, pieces=[1, 12, 16, 1])[0]
    assert all(torch.equal(whole[t], pieces[t]) for t in range(30, 40))


def test_sizes_may_be_parts_of_the_prompt() -> None:
    q, k = random_row(48)
    method = make_method("h2o", 400, recent=200, variant="mask", heavy_ratio=0.1, recent_ratio=0.2)
    found = read_sets(method, q, k, prompt=39)[0]
    expected = masking(q, k, 39, heavy=3, recent=7, first=0)
    assert as_sets(found[45]) == [expected[group][6] for group in (0, 0, 1, 1)]
    assert method.stated_reads(46, prompt=39, layer=0) == (10, 10)
    assert method.kv_kept(46) == 46  # nothing is freed


def test_oneshot_chooses_columns_by_the_whole_prompt() -> None:
    q, k = random_row(40)
    method = make_method("h2o", 10, recent=3, first=1, variant="oneshot")
    found = read_sets(method, q, k, prompt=40)[0]
    sums = causal_weights(q, k).sum(1).unflatten(0, (2, 2)).sum(1)  # [groups, S], over all rows
    for group in (0, 1):
        columns = best({s: float(sums[group, s]) for s in range(1, 40)}, 6) | {0}
        for t in range(40):
            expected = {s for s in range(t + 1) if s in columns or t - s <= 3}
            assert as_sets(found[t])[2 * group] == as_sets(found[t])[2 * group + 1] == expected
    assert not method.lm_scores
    assert not method.chunked_prefill
    assert not method.shared_prefixes
    assert method.phase == "prefill"
    # The class stays as it is: only this instance declares otherwise.
    assert H2O.lm_scores
    assert make_method("h2o", 10, recent=3).phase == "decode"
    assert method.describe()["declarations"]["lm_scores"] is False


def test_what_nsa_compares_with() -> None:
    method = make_method("h2o", 2560, recent=512, first=128)
    assert method._sizes(30_000) == (1920, 512)
    assert method.kv_reads(30_000) == 2561  # its own token besides
    assert method.kv_kept(30_000) == 2560


def test_memory_is_never_changed_in_place() -> None:
    q, k = random_row(30)
    row = Memories.fresh(1).rows[0]
    row.layers[0] = Memory(own=_Heavy(torch.zeros(2, 3)), seen=3)
    twin = row.copy()
    read_sets(make_method("h2o", 9, recent=4), q, k, prompt=20)
    twin.layers[0].own = _Heavy(torch.ones(2, 4))
    assert row.layers[0].own.scores.shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 4, "recent": 3, "first": 1}, "budget must be above first \\+ recent = 4"),
        ({"budget": 4, "recent": 0}, "recent must be at least 1 token, got 0"),
        ({"budget": 9, "recent": 3, "first": -1}, "first must be at least 0 tokens"),
        ({"budget": 9, "recent": 3, "variant": "paper"}, "variant must be one of drop, mask, oneshot"),
        ({"budget": 9, "recent": 3, "heavy_ratio": 0.1}, 'heavy_ratio is for the variants "mask" and'),
        ({"budget": 9, "recent": 3, "variant": "mask", "recent_ratio": 2.0}, "recent_ratio must be within 0"),
    ],
)
def test_parameters_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=f"h2o: {message}"):
        make_method("h2o", **options)
