"""Progress: shares and times left, in a pipe as lines."""

from types import SimpleNamespace

import pytest

import nsa_eval
from nsa_eval._counting import CountingStore, Workload, size_of
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
    progress.add(400)
    assert progress.left is None  # not "0s left" while the results are compared


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


def test_the_bar_counts_requests_and_swings_until_one_is_answered():
    import io

    from rich.console import Console

    screen = io.StringIO()
    bar = Bar()
    bar._bar.live.console = Console(file=screen, force_terminal=True, width=100)
    bar.start(1000, 60)
    bar.say("nsa: loading")
    bar.begin_work()
    bar._bar.refresh()
    waiting, task = screen.getvalue(), bar._bar.tasks[0]
    assert task.total is None  # what rich draws swinging
    assert "0/60 requests" in waiting
    assert "0%" not in waiting
    bar.add(500, 12)
    bar._bar.refresh()
    bar.stop()
    assert (task.total, task.completed) == (1000, 500)
    assert "12/60 requests" in screen.getvalue()
    assert "50%" in screen.getvalue()


def test_lines_count_requests():
    lines = []
    progress = Lines(write=lines.append, clock=Clock())
    progress.start(200, 1)
    progress.say("nsa")
    progress.change_total(0, 1999)
    progress.add(100, 1200)
    progress.say("dense")
    assert lines == ["nsa: 0%, 0/1 request", "dense: 50%, 1,200/2,000 requests"]


def test_what_is_counted_apart_leaves_the_runs_totals_and_pace_alone():
    clock, lines = Clock(), []
    progress = Lines(every=0, write=lines.append, clock=clock)
    progress.start(1000, 10)
    progress.say("nsa")
    progress.begin_work()
    clock.now += 10
    progress.add(500, 5)
    with progress.apart("nsa: looking", "look", 80, 4):
        progress.skip(20, 1)
        clock.now += 30
        progress.begin_work()
        progress.add(20, 1)
    progress.say("dense")
    assert lines[1:] == [
        "nsa: 50%, 5/10 requests, 10s left",
        "nsa: looking: 0%, 0/4 looks",
        "nsa: looking: 25%, 1/4 looks",
        "nsa: looking: 50%, 2/4 looks, 1m 00s left",
        "dense: 50%, 5/10 requests, 10s left",
    ]
    with pytest.raises(KeyError), progress.apart("nsa: looking", "look", 1, 1):
        raise KeyError
    assert (progress.total, progress.requests_total, progress.counted) == (1000, 10, "5/10 requests")


def _request(key, prompt, task="t", **settings):
    arguments = (prompt, settings) if settings else (prompt, " yes")
    return SimpleNamespace(key=key, arguments=arguments, origin=SimpleNamespace(task=task))


def _job(variant, label, samples=None, tokens=None):
    task = SimpleNamespace(label=label, task=label, repeats=None)
    return SimpleNamespace(
        variant=SimpleNamespace(name=variant), task=task, params=None, samples=samples, tokens=tokens
    )


def test_a_guess_gives_way_to_what_is_built():
    """lm-eval's documents were taken for 400 tokens each: the bar stood at 100 % long before the end."""
    progress = Progress()
    jobs = [_job("a", "mmlu"), _job("b", "mmlu"), _job("a", "needle", 2, 5000), _job("b", "needle", 2, 5000)]
    load = Workload(jobs, progress)
    assert (progress.total, progress.requests_total) == (10_000, 4)
    load.loaded(jobs, {"mmlu": 10, "needle": 2})
    assert (progress.total, progress.requests_total) == (10_000 + 2 * 10 * 400, 4 + 2 * 10)
    asked = [_request(str(i), "x" * 8000, task=f"mmlu_{i % 3}") for i in range(40)]
    load.built("a", asked, {f"mmlu_{i}": "mmlu" for i in range(3)})
    size = sum(map(size_of, asked))
    assert size == 40 * (8004 // 4 + 1)
    # The other variant is asked the same, so its guess gives way as well.
    assert (progress.total, progress.requests_total) == (10_000 + 2 * size, 4 + 2 * 40)
    replies = [_request(f"r{i}", "x" * 8000, task="mmlu_0", max_gen_toks=100) for i in range(5)]
    load.built("a", replies, {"mmlu_0": "mmlu"})  # a second way of asking joins the first
    assert progress.requests_total == 4 + 2 * 45
    assert progress.total == 10_000 + 2 * (size + 5 * (2000 + 100 + 1))


def test_what_is_stored_counts_once_and_by_its_size():
    progress = Progress()
    inner = {"k": "stored"}
    store = CountingStore(
        SimpleNamespace(path=None, get=inner.get, put_many=inner.update, refresh=dict), progress
    )
    twice = [_request("k", "x" * 400), _request("k", "x" * 400), _request("new", "x" * 40)]
    store.expect(twice)
    for _ in range(2):
        assert store.get("k") == "stored"
        assert store.get("new") is None
    assert (progress.requests, progress.skipped) == (2, 2 * 102)
    store.put_many({"new": "reply"})
    assert (progress.requests, progress.done) == (3, 2 * 102 + 12)


@pytest.mark.parametrize("again", [False, True])
def test_a_run_ends_at_its_total_and_not_before(tiny_config, tmp_path, monkeypatch, again):
    """On a task of lm-eval's kind, whose documents are far from what is guessed."""
    monkeypatch.setattr("nsa_eval.report.render_report", lambda directory, *, out, **_: out.write_text(""))
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"q": "{"word " * 30}{i}?"}}\n' for i in range(6)))
    (tmp_path / "long.yaml").write_text(
        f"task: long\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{q}}'\n"
        "generation_kwargs: {until: [], max_gen_toks: 2}\nmetric_list: [{metric: bypass}]\n"
    )
    needle = {"task": "needle_single", "lengths": [256], "depths": 2, "samples": 1, "new_tokens": 8}
    config = tiny_config(tasks=[{"task": "long"}, needle], include_path=[str(tmp_path)])

    class Watched(Progress):
        shares: list

        def draw(self, *, now=False):
            self.shares = [*getattr(self, "shares", []), (self.done, self.total)]

    for _ in range(1 + again):
        progress = Watched()
        nsa_eval.run(config, output=tmp_path / "run", overwrite=True, progress=progress)
        if again:  # the answers are there, the results are not
            for file in (tmp_path / "run").glob("*/results_*.json"):
                file.unlink()
    assert progress.done == progress.total > 0
    assert progress.requests == progress.requests_total == 2 * (6 + 2)
    computing = [(done, total) for done, total in progress.shares if 0 < done < progress.done]
    assert computing
    assert all(done < total for done, total in computing)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (45, "45s"), (200, "3m 20s"), (7500, "2h 05m"), (345_599, "95h 59m"), (356_400, "4d 03h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
