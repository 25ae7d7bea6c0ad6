"""Progress: shares and times left, in a pipe as lines."""

import pytest

from nsa_eval.progress import Bar, Lines, Progress, choose, duration


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_time_left_is_at_the_pace_of_what_was_computed():
    clock = Clock()
    progress = Progress(clock=clock)
    progress.start(1000)
    clock.now += 500  # loading: no pace yet
    assert progress.left is None
    progress.begin_work()
    progress.skip(400)  # from an earlier run
    clock.now += 10
    progress.add(100)
    assert progress.share == 0.5
    assert progress.left == 50.0
    clock.now += 10
    progress.begin_work()  # the second model: the pace goes on
    progress.add(100)
    assert progress.left == 40.0


def test_a_corrected_total():
    progress = Progress()
    progress.start(0)
    progress.add(5)
    assert (progress.share, progress.left) == (0.0, None)
    progress.change_total(10)
    assert progress.share == 0.5
    progress.add(100)
    assert progress.share == 1.0


def test_lines_come_now_and_then_and_at_each_stage():
    clock, lines = Clock(), []
    progress = Lines(every=10, write=lines.append, clock=clock)
    progress.start(200)
    progress.say("one: loading")
    progress.begin_work()
    for _ in range(9):
        clock.now += 4
        progress.add(20)
    progress.say("comparing")
    progress.note("one: 2 prompts were cut")
    assert lines == [
        "one: loading: 0%",
        "one: loading: 30%, 28s left",
        "one: loading: 60%, 16s left",
        "one: loading: 90%, 4s left",
        "comparing: 90%, 4s left",
        "one: 2 prompts were cut",
    ]


def test_a_bar_in_a_terminal_lines_elsewhere_nothing_when_asked(monkeypatch):
    assert type(choose(False)) is Progress
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = choose()
    assert isinstance(bar, Bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert isinstance(choose(), Lines)


def test_the_bar_shows_stage_share_and_time_left(monkeypatch):
    import io

    from rich.console import Console

    screen = io.StringIO()
    bar = Bar()
    bar._bar.live.console = Console(file=screen, force_terminal=True, width=100)
    bar.start(100)
    bar.begin_work()
    bar.say("nsa")
    bar.add(50)
    bar._bar.refresh()
    bar.stop()
    assert "nsa" in screen.getvalue()
    assert "50%" in screen.getvalue()
    assert "left" in screen.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (45, "45s"), (200, "3m 20s"), (7500, "2h 05m")])
def test_durations(seconds, text):
    assert duration(seconds) == text
