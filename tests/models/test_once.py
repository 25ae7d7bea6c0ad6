"""Seconds of what is done once are told apart from the rest."""

import contextlib
import time
from types import SimpleNamespace

import pytest
import torch

from nsa_models import once as module
from nsa_models.graphs import ReplayedStep
from nsa_models.once import once, seconds_once, watch_compiler


def spent(work):
    before = seconds_once()
    work()
    return seconds_once() - before


def test_of_blocks_within_each_other_the_outermost_counts():
    def work():
        with once():
            time.sleep(0.02)
            with once():
                time.sleep(0.02)
        time.sleep(0.02)

    assert 0.04 <= spent(work) < 0.058


def test_a_block_that_fails_counts_and_ends():
    def work():
        with contextlib.suppress(ZeroDivisionError), once():
            time.sleep(0.02)
            1 / 0  # noqa: B018

    assert spent(work) >= 0.02
    assert module._depth == 0


def test_triton_compiles_count_outside_of_blocks_only(monkeypatch):
    triton = pytest.importorskip("triton")
    heard = []
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda **event: heard.append(event))
    watch_compiler.cache_clear()
    watch_compiler()
    tell = triton.knobs.compilation.listener
    event = {"times": SimpleNamespace(total=2_500_000), "cache_hit": False}

    def within():
        with once():
            tell(**event)

    assert spent(lambda: tell(**event)) == pytest.approx(2.5)
    assert spent(within) < 0.1
    assert len(heard) == 2, "who listened before still hears"
    watch_compiler.cache_clear()


def test_a_capture_is_counted(monkeypatch):
    def slow(self):
        time.sleep(0.02)
        self._graph, self._result = SimpleNamespace(replay=lambda: None), torch.zeros(1)

    monkeypatch.setattr(ReplayedStep, "_capture", slow)
    step = ReplayedStep(lambda: torch.zeros(1), state=[torch.zeros(1)], enabled=True)
    assert spent(step) >= 0.02
    assert spent(step) == 0, "replayed"
