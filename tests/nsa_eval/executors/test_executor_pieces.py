"""How requests are cut into pieces that workers take one at a time."""

import random

import pytest

from nsa_eval.engine import Request
from nsa_eval.engine._prompts import Origin
from nsa_eval.executors import _pieces
from nsa_eval.executors._pieces import pieces


def request(number, text, *more):
    return Request(
        key=f"{number:03d}", kind="loglikelihood", arguments=(text, *more), origin=Origin("t", number), seed=0
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(_pieces._CHARACTERS, "cpu", 100)


def keys(found):
    return [[r.key for r in piece] for piece in found]


def test_every_request_is_in_one_piece():
    asked = [request(n, "x" * n, " yes") for n in range(1, 60)]
    assert sorted(key for piece in keys(pieces(asked, "cpu")) for key in piece) == [r.key for r in asked]
    assert pieces([], "cpu") == []


def test_pieces_do_not_depend_on_the_order_of_the_requests():
    asked = [request(n, f"{n * 7919 % 100} {'y' * (n % 40)}") for n in range(80)]
    shuffled = random.Random(1).sample(asked, len(asked))
    assert keys(pieces(asked, "cpu")) == keys(pieces(shuffled, "cpu"))


def test_prompts_that_begin_alike_stay_together_beyond_the_size():
    head = "head " * 12
    asked = [request(n, head + str(n)) for n in range(5)]
    assert len(pieces(asked, "cpu")) == 1
    unlike = [request(n, chr(97 + n) * 60) for n in range(5)]
    assert [len(piece) for piece in pieces(unlike, "cpu")] == [1] * 5


def test_a_common_beginning_does_not_make_a_piece_without_end():
    head = "head " * 12
    asked = [request(n, head + str(n)) for n in range(50)]
    found = pieces(asked, "cpu")
    assert len(found) > 5
    assert max(sum(len(r.arguments[0]) for r in piece) for piece in found) <= 400


def test_the_longest_come_first():
    found = pieces([request(n, chr(97 + n) * (60 + n)) for n in range(6)], "cpu")
    longest = [max(len(r.arguments[0]) for r in piece) for piece in found]
    assert longest == sorted(longest, reverse=True)


def test_a_device_that_is_not_known_has_pieces_of_a_gpu():
    asked = [request(n, chr(97 + n) * 60) for n in range(5)]
    assert len(pieces(asked, "xpu")) == 1
