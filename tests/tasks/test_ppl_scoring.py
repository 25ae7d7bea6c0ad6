"""Nats a token and bits a byte of perplexity by position, by hand."""

import math

import pytest

from nsa_tasks.ppl.parameters import automatic
from nsa_tasks.ppl.scoring import metric_list, perplexity, scores

DOC = {"buckets": [4, 8], "tokens": [3, 4], "bytes": [12, 20]}


def test_buckets_and_the_window_by_hand():
    found = scores(DOC, [(-6.0, False), (-4.0, True)])
    assert (found["nll@4"], found["nll@8"]) == (2.0, 1.0)
    assert found["nll"] == pytest.approx(10 / 7)  # over tokens, not over buckets
    assert found["bits_per_byte@4"] == pytest.approx(6 / math.log(2) / 12)
    assert found["bits_per_byte@8"] == pytest.approx(4 / math.log(2) / 20)
    assert found["bits_per_byte"] == pytest.approx(10 / math.log(2) / 32)


def test_perplexity_is_e_to_the_mean_over_documents():
    each = ([(-6.0, False), (-8.0, False)], [(-7.0, False)] * 2)
    items = [scores(DOC, results)["perplexity"] for results in each]
    assert items == [[2.0], [2.0]]
    assert perplexity([[1.0], [3.0]]) == pytest.approx(math.exp(2.0))


def test_one_bit_a_byte_is_a_coin_for_each_bit():
    doc = {"buckets": [8], "tokens": [8], "bytes": [8]}
    assert scores(doc, [(-8 * math.log(2), False)])["bits_per_byte@8"] == pytest.approx(1.0)


def test_metrics_are_listed_as_they_are_scored_and_lower_is_better():
    listed = metric_list(DOC["buckets"])
    assert {entry["metric"] for entry in listed} == set(scores(DOC, [(-1.0, False)] * 2))
    assert listed[0]["metric"] == "nll"
    assert not any(entry["higher_is_better"] for entry in listed)


@pytest.mark.parametrize(
    ("window", "ends"),
    [
        (65536, (1024, 2048, 4096, 8192, 16384, 32768, 65536)),
        (2048, (32, 64, 128, 256, 512, 1024, 2048)),
        (100, (12, 25, 50, 100)),
        (7, ()),
    ],
)
def test_automatic_ends_double_up_to_the_window(window, ends):
    assert automatic(window) == ends
