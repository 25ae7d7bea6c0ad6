"""The largest document that fits, whatever the positions say, and prompts that aren't their cell's length."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_tasks import TaskParameterError
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.sizing import (
    ROUNDING,
    SLACK,
    TooShortError,
    check_filled,
    largest_that_fits,
    plain_largest_that_fits,
)


@dataclass(frozen=True)
class Document:
    size: int
    tokens: int


@settings(max_examples=200, deadline=None)
@given(
    base=st.integers(0, 40),
    pieces=st.lists(st.integers(1, 30), max_size=60),
    budget=st.integers(0, 900),
    scale=st.sampled_from([0.1, 0.9, 1.0, 1.3, 25.0]),
)
def test_it_finds_what_counting_every_size_finds(base, pieces, budget, scale):
    totals = [base, *(base + int(total) for total in np.cumsum(pieces))]
    positions = np.array([scale * (total - base) for total in totals])  # as far off as `scale` says

    def build(size):
        return Document(size, totals[size])

    if base > budget:
        for search in (
            lambda: plain_largest_that_fits(build, len(totals), budget),
            lambda: largest_that_fits(build, positions, budget),
        ):
            with pytest.raises(TooShortError) as caught:
                search()
            assert caught.value.args[0] == base
        return
    plain = plain_largest_that_fits(build, len(totals), budget)
    assert largest_that_fits(build, positions, budget, slack=0) == plain
    quick = largest_that_fits(build, positions, budget)
    assert quick.document.tokens <= budget
    assert quick == plain or budget - quick.document.tokens <= SLACK


def test_good_positions_need_few_trials():
    tried = []

    def build(size):
        tried.append(size)
        return Document(size, 50 + 3 * size)

    positions = np.arange(50_000, dtype=np.float64) * 2.7
    assert largest_that_fits(build, positions, 65_536).document.tokens == 65_534
    assert len(tried) <= 8


def test_a_prompt_may_lack_the_piece_that_did_not_fit_and_no_more():
    for lacking in (0, 1, 4 + ROUNDING):
        check_filled("d", tokens=1000 - lacking, budget=1000, piece=4)
    with pytest.raises(TaskParameterError, match=r"d: the finished prompt has 989 .* where 1,000 are asked"):
        check_filled("d", tokens=1000 - 4 - ROUNDING - 1, budget=1000, piece=4)
    with pytest.raises(TaskParameterError, match="has 1,001"):
        check_filled("d", tokens=1001, budget=1000, piece=4)


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("name", ["byte_tokenizer", "bpe_tokenizer", "slow_tokenizer"])
def test_a_count_is_that_of_the_tokenizers_own_call(name, add_bos_token, request):
    tokens = RequestTokens.load(request.getfixturevalue(name), add_bos_token=add_bos_token)
    for text in (
        "",
        "a",
        "<s>",
        "<s> one, two",
        "one </s> two",
        "caf\u00e9 \u6f22\u5b57 \U0001f600",
        " x" * 5000,
    ):
        assert tokens.count(text) == len(tokens.encode(text).ids)
