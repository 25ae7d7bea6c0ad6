"""Documents made on threads are those that would be made one after another."""

import threading
import time

import pytest

from nsa_tasks import resolve
from nsa_tasks._clock import clock_at
from nsa_tasks._threads import each
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.needle import build


@pytest.mark.parametrize("haystack", ["generated", "noise", "needles", "text"])
@pytest.mark.parametrize("task", ["needle_single", "needle_multikey"])
def test_a_grid_is_that_of_a_plain_loop(bpe_tokenizer, tmp_path, haystack, task, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    if haystack == "text":
        words = "The keeper of lamp {} wrote of storms to the harbour below the hill."
        (tmp_path / "book.txt").write_text(" ".join(words.format("x" * (1 + i % 9)) for i in range(600)))
        haystack = f"text:{tmp_path / 'book.txt'}"
    params = resolve(task, {"lengths": [400, 900], "depths": 3, "samples": 4, "haystack": haystack})
    tokens = RequestTokens.load(bpe_tokenizer)
    source = build.open_haystack(params)
    plain = [
        build.document(params, length, depth, sample, source, tokens)
        for length in (400, 900)
        for depth in range(3)
        for sample in range(4)
    ]
    assert build.documents(params, tokens) == plain


def test_a_tokenizer_in_python_is_asked_by_one_thread_alone(slow_tokenizer, monkeypatch):
    """It would gain nothing, and may keep a state of its own."""
    tokens = RequestTokens.load(slow_tokenizer)
    asking = set()
    tokenize = tokens.tokenizer._tokenize

    def seen(text):
        asking.add(threading.get_ident())
        return tokenize(text)

    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(tokens.tokenizer, "_tokenize", seen)
    params = resolve("needle_single", {"lengths": [1500], "depths": 3, "samples": 2})
    assert len(build.documents(params, tokens)) == 6
    assert asking == {threading.get_ident()}


def test_the_order_is_that_of_the_jobs_whichever_ends_first(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)

    def make(job):
        time.sleep(0.02 * (4 - job % 5))
        return job

    assert each(make, list(range(12))) == list(range(12))
    assert each(make, []) == []


def test_jobs_run_side_by_side_behind_the_first(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    meeting = threading.Barrier(2, timeout=10)  # one thread alone would wait in vain
    assert each(lambda job: job == 0 or meeting.wait() >= 0, [0, 1, 2]) == [True] * 3


def test_the_first_mistake_is_raised_and_what_had_not_begun_is_dropped(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    made = []

    def make(job):
        made.append(job)
        if job == 3:
            time.sleep(0.05)
            raise ValueError(f"job {job}")
        if job > 3:
            time.sleep(0.1)

    with pytest.raises(ValueError, match="job 3"):
        each(make, list(range(50)))
    assert len(made) < 10


def test_every_thread_reads_the_day_that_it_holds_and_the_clock_runs_on_behind(monkeypatch):
    from transformers.utils import chat_template_utils

    monkeypatch.setattr("os.cpu_count", lambda: 4)
    running = chat_template_utils.datetime

    def make(day):
        with clock_at(f"2026-01-{day:02}"):
            time.sleep(0.002)
            return chat_template_utils.datetime.now().day

    assert each(make, list(range(1, 25))) == list(range(1, 25))
    assert chat_template_utils.datetime is running
