"""Time and memory of plans: from profiles, from a measurement, from nothing."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nsa_eval.config import load_config
from nsa_eval.errors import UserError
from nsa_eval.estimate import (
    Measurement,
    Pace,
    Range,
    estimate,
    estimate_lines,
    keep_profile,
    measure,
    measure_one,
    profile_of,
    profiles_folder,
    read_profiles,
    shape_of,
    time_range,
)
from nsa_eval.plan import make_plan, requests_of
from nsa_eval.store import Conditions, Cost, Response, Tally

HERE = Conditions(
    device_name="H",
    device="cuda",
    dtype="bfloat16",
    backend="triton",
    batch_size="auto",
    weights_bytes=2**30,
    device_bytes=8 * 2**30,
)


def law(a, b, fixed, step):
    """A model's real pace: seconds of a prompt of n tokens, and of a step behind n tokens."""
    return lambda n: a * n + b * n * n, lambda n: fixed + step * n


DENSE = law(1e-5, 2e-9, 5e-3, 1e-7)
NSA = law(3e-5, 0.0, 6e-3, 0.0)


def answered(pace, lengths, new=16, per_token=100.0):
    """The tally of a run over prompts of these lengths."""
    prefill, decode = pace
    tally = Tally()
    for n in lengths:
        cost = Cost(
            prefill_seconds=prefill(n),
            decode_seconds=decode(n + new / 2) * (new - 1),
            decode_steps=new - 1,
            prompt_tokens=n,
            new_tokens=new,
            kv_kept_bytes=round(per_token * (n + new)),
        )
        tally.add("t", "generate_until", Response(value="x", prompt_tokens=n, new_tokens=new, cost=cost))
    return tally


@pytest.fixture
def plan_of(tiny_config):
    """The plan of one tiny model on one needle grid."""

    def made(**task):
        given = {"task": "needle_single", "lengths": [256], "depths": 2, "samples": 1, "new_tokens": 8}
        content = tiny_config(tasks=[{**given, **task}], compare={})
        content["models"] = [{**content["models"][0], "max_length": 10**6}]
        config = load_config(content)
        return config, make_plan(config)

    return made


def profiled(config, pace, lengths, *, conditions=HERE, **given):
    from nsa_eval.config import all_variants

    [variant] = all_variants(config)
    sheet = answered(pace, lengths, **given).sheet(conditions)
    return profile_of(sheet, variant, run="earlier", made="2026-11-01")


class TestPace:
    @pytest.mark.parametrize("pace", [DENSE, NSA], ids=["dense", "nsa"])
    @pytest.mark.parametrize("lengths", [(512, 4096), (512, 2048, 8192)], ids=len)
    @pytest.mark.parametrize("at", [1024, 8192, 65536])
    def test_a_law_is_found_again_and_carried_far(self, pace, lengths, at):
        prefill, decode = pace
        found = Pace.fit([(n, prefill(n), 1) for n in lengths], highest=2)
        assert found.at(at).low < prefill(at) < found.at(at).high
        middle = (found.at(at).low * found.at(at).high) ** 0.5
        assert middle == pytest.approx(prefill(at), rel=0.02)
        steps = Pace.fit([(n, decode(n), 1) for n in lengths], highest=1)
        assert steps.at(at).low < decode(at) < steps.at(at).high

    def test_doubt_grows_with_the_distance(self):
        found = Pace.fit([(512, 1.0, 1), (1024, 2.0, 1)], highest=2)
        widths = [found.at(n).high / found.at(n).low for n in (1024, 4096, 65536)]
        assert widths[0] == pytest.approx(1.3**2)
        assert widths == sorted(widths)

    @pytest.mark.parametrize("pace", [DENSE, NSA], ids=["dense", "nsa"])
    @pytest.mark.parametrize("at", [128, 1024, 32768])
    def test_of_one_length_it_is_not_known_how_it_grows(self, pace, at):
        prefill, decode = pace
        found = Pace.fit([(1024, prefill(1024), 1)], highest=2)
        assert found.at(at).low < prefill(at) < found.at(at).high
        steps = Pace.fit([(1024, decode(1024), 1)], highest=1)
        assert steps.at(at).low < decode(at) < steps.at(at).high

    def test_contrary_measurements_widen_it(self):
        found = Pace.fit([(1024, 1.0, 1), (1025, 4.0, 1)], highest=2)
        assert found.spread > 1.5

    def test_nothing_gives_nothing(self):
        assert Pace.fit([], highest=2) is None
        assert Pace.fit([(512, 0.0, 3)], highest=2) is None


class TestFromAProfile:
    @pytest.mark.parametrize("pace", [DENSE, NSA], ids=["dense", "nsa"])
    def test_the_time_that_the_jobs_really_take_lies_within(self, plan_of, pace):
        config, plan = plan_of(lengths=[4096, 16384], samples=3)
        profile = profiled(config, pace, [500, 500, 4000], new=8)
        found = estimate(plan, [profile], device=lambda model: "H")
        prefill, decode = pace
        real = sum(
            6 * (prefill(n - 8) + sum(decode(n - 8 + step) for step in range(7))) for n in (4096, 16384)
        )
        assert found.seconds.low < real < found.seconds.high
        assert found.seconds.high < 4 * found.seconds.low

    def test_replies_may_end_early_or_fill_their_budget(self, plan_of):
        config, plan = plan_of(new_tokens=200)
        profile = profiled(config, law(0.0, 1e-12, 1.0, 0.0), [500, 4000], new=11)
        seconds = estimate(plan, [profile], device=lambda model: "H").seconds
        assert seconds.low == pytest.approx(2 * 10 / 1.3, rel=0.01)
        assert seconds.high == pytest.approx(2 * 199 * 1.3, rel=0.01)

    def test_an_upper_bound_of_tokens_is_no_lower_bound_of_time(self, plan_of):
        config, plan = plan_of()
        profile = profiled(config, NSA, [200, 500])
        bounded = replace(plan, jobs=tuple(replace(job, at_most="as if all were long") for job in plan.jobs))
        plain, most = (estimate(one, [profile], device=lambda _: "H").seconds for one in (plan, bounded))
        assert most == Range(0.0, plain.high)
        assert time_range(most).startswith("up to ")

    def test_what_is_paid_once_is_added_once(self, plan_of):
        config, plan = plan_of()
        profile = profiled(config, NSA, [200, 500])
        warm = profile.model_copy(update={"warm_up_seconds": 30.0})
        plain = estimate(plan, [profile], device=lambda model: "H").seconds
        assert estimate(plan, [warm], device=lambda model: "H").seconds == plain + Range(0.0, 30.0)

    def test_it_says_where_it_is_from_and_how_far_it_reaches(self, plan_of):
        config, plan = plan_of(lengths=[32768])
        profile = profiled(config, NSA, [500, 4000], per_token=2**20)
        [total, model, far, memory] = estimate_lines(estimate(plan, [profile], device=lambda model: "H"))
        assert total.startswith("time: ")
        assert "for 1 of 1 job," in total
        assert "from the profile of earlier (2026-11-01, H, bfloat16, triton)" in model
        assert "measured up to 4,000 tokens, and the longest request has 32,768" in far
        assert "1 GiB of weights, 32 GiB of keys and values for each row of 32,768 tokens" in memory
        assert "the device has 8 GiB: IT DOES NOT FIT, weights and one row alone are 33 GiB" in memory

    def test_another_machine_is_said_and_this_one_preferred(self, plan_of):
        config, plan = plan_of()
        old = profiled(config, NSA, [200, 500])
        other = profiled(config, NSA, [200, 500], conditions=HERE.model_copy(update={"device_name": "A"}))
        newer = other.model_copy(
            update={"points": tuple(p.model_copy(update={"made": "2026-12-01"}) for p in other.points)}
        )
        assert estimate(plan, [old, newer], device=lambda model: "H").variants[0].profile == old
        lines = estimate_lines(estimate(plan, [newer], device=lambda model: "H"))
        assert any("this machine has another device (H)" in line for line in lines)

    @pytest.mark.parametrize(
        ("key", "value", "fits"),
        [("dtype", "float32", False), ("dtype", "bfloat16", True), ("backend", "torch", False)],
    )
    def test_a_profile_of_another_dtype_or_backend_is_none(self, plan_of, key, value, fits):
        config, plan = plan_of()
        profile = profiled(config, NSA, [200, 500])
        jobs = tuple(plan.jobs)
        model = jobs[0].variant.checkpoint.model_copy(update={key: value})
        from dataclasses import replace

        changed = replace(
            plan, jobs=tuple(replace(j, variant=replace(j.variant, checkpoint=model)) for j in jobs)
        )
        assert (estimate(changed, [profile], device=lambda model: "H").seconds is not None) == fits

    def test_nothing_known_says_how_to_know(self, plan_of, monkeypatch, tmp_path):
        monkeypatch.setenv("NSA_EVAL_PROFILES", str(tmp_path))
        _, plan = plan_of()
        asked = []
        found = estimate(plan, [], device=asked.append)
        [line] = estimate_lines(found)
        assert "nothing is known" in line
        assert "--measure" in line
        assert str(tmp_path) in line
        assert asked == [], "no device is looked for in vain"

    @pytest.mark.parametrize(("variants", "named"), [(3, "nsa, nsa-1, nsa-2: ?"), (4, "nsa and 3 more: ?")])
    def test_models_of_which_nothing_is_known_share_a_line(self, plan_of, variants, named):
        config, plan = plan_of()
        [known] = estimate(plan, [profiled(config, NSA, [200, 500])], device=lambda model: "H").variants
        none = replace(known, profile=None, jobs=())
        unknown = [
            replace(none, variant=replace(none.variant, name=f"nsa-{n}" if n else "nsa"))
            for n in range(variants)
        ]
        found = estimate(plan, [profiled(config, NSA, [200, 500])], device=lambda model: "H")
        lines = estimate_lines(replace(found, variants=(*unknown, known)))
        assert [line.startswith(named) for line in lines] == [False, False, False, True]

    def test_jobs_of_unknown_size_are_counted_out(self, tiny_config):
        config = load_config(tiny_config(tasks=[{"task": "arc_easy"}, *tiny_config()["tasks"]], compare={}))
        config = config.model_copy(update={"models": config.models[:1]})
        profile = profiled(config, NSA, [200, 500])
        lines = estimate_lines(estimate(make_plan(config), [profile], device=lambda model: "H"))
        assert "for 2 of 3 jobs" in lines[0]
        assert "jobs with ?: only a task's data tell its size" in lines
        # 30 microseconds a token, 6 ms a step, within a factor of 1.3.
        pace = "  pace at 500 tokens: a prompt 11.5 ms to 19.5 ms, a token behind it 4.62 ms to 7.8 ms"
        assert pace in lines

    @pytest.mark.parametrize("limit", [None, 1, 3, 5])
    def test_a_limit_keeps_the_shares_of_lengths(self, plan_of, limit):
        _, plan = plan_of(lengths=[256, 320, 512], depths=2, samples=2, limit=limit)
        sizes = requests_of(plan.jobs[0])
        assert sum(size.documents for size in sizes) == (limit or 12)
        assert max(s.documents for s in sizes) - min(s.documents for s in sizes) <= 1
        assert all(size.new_tokens == 8 for size in sizes)


class TestKeeping:
    @pytest.fixture(autouse=True)
    def folder(self, monkeypatch, tmp_path):
        monkeypatch.setenv("NSA_EVAL_PROFILES", str(tmp_path / "kept"))
        return tmp_path / "kept"

    def test_a_profile_comes_back_and_newer_points_replace_older_ones(self, plan_of, folder):
        config, _ = plan_of()
        first = profiled(config, NSA, [200, 4000])
        assert keep_profile(first).parent == folder
        assert read_profiles() == [first]
        second = profiled(config, DENSE, [210])
        keep_profile(second)
        [joined] = read_profiles()
        assert [round(point.tokens) for point in joined.points] == [210, 4000]
        assert joined.points[0].prefill_seconds == second.points[0].prefill_seconds
        assert read_profiles(folder) == read_profiles(keep_profile(second)) == [joined]

    def test_devices_and_dtypes_have_files_of_their_own(self, plan_of):
        config, _ = plan_of()
        for change in ({}, {"device_name": "A"}, {"dtype": "float32"}):
            keep_profile(profiled(config, NSA, [200], conditions=HERE.model_copy(update=change)))
        assert len(read_profiles()) == 3

    def test_damaged_files_are_passed_over_unless_named(self, plan_of, folder):
        config, _ = plan_of()
        file = keep_profile(profiled(config, NSA, [200]))
        file.write_text("{")
        assert read_profiles() == []
        with pytest.raises(UserError, match="not a profile that nsa-eval wrote"):
            read_profiles(file)
        assert keep_profile(profiled(config, NSA, [200])) == file, "and written anew"
        with pytest.raises(UserError, match="no such file or folder"):
            read_profiles(folder / "none.json")

    def test_a_folder_that_cannot_be_written_or_is_off_is_no_error(self, plan_of, folder, monkeypatch):
        config, _ = plan_of()
        folder.write_text("a file is in the way")
        assert keep_profile(profiled(config, NSA, [200])) is None
        monkeypatch.setenv("NSA_EVAL_PROFILES", "off")
        assert keep_profile(profiled(config, NSA, [200])) is None
        assert profiles_folder() is None
        assert read_profiles() == []

    def test_models_of_one_shape_share_a_profile_and_variants_have_their_own(self, tiny_config):
        from nsa_eval.config import all_variants

        config = load_config(tiny_config())
        one, two = all_variants(config)
        assert shape_of(one) == shape_of(two), "other weights, other name"
        swept = tiny_config()
        swept["models"][0]["variants"] = [{}, {"set": {"num_hidden_layers": [1, 2]}}]
        shapes = [shape_of(variant) for variant in all_variants(load_config({**swept, "compare": {}}))]
        assert len(set(shapes[:3])) == 3


class TestMeasuring:
    @staticmethod
    def measured(pace, *, longest, budget=20.0, new_tokens=8, max_length=10**6):
        """`measure_one` over a tokenizer of words and a model of a known pace; the lengths it asked."""
        tokenizer = SimpleNamespace(
            encode=lambda text, add_special_tokens: text.split(), decode=lambda ids: " ".join(ids)
        )
        asked = []

        def answer(requests):
            found = []
            for request in requests:
                tokens = len(request.arguments[0].split())
                asked.append((request.kind, tokens, request.arguments[0]))
                new = request.arguments[1]["max_gen_toks"] if request.kind == "generate_until" else 1
                prefill, decode = pace
                cost = Cost(
                    prefill_seconds=prefill(tokens),
                    decode_seconds=decode(tokens) * (new - 1),
                    decode_steps=new - 1,
                    prompt_tokens=tokens,
                    new_tokens=new,
                )
                found.append(Response(value="x", prompt_tokens=tokens, new_tokens=new, cost=cost))
            return found

        tally = measure_one(
            answer,
            tokenizer=tokenizer,
            max_length=max_length,
            longest=longest,
            new_tokens=new_tokens,
            rows=2,
            budget=budget,
        )
        return tally, asked

    def test_two_lengths_are_measured_and_the_first_request_is_not_counted(self):
        tally, asked = self.measured(DENSE, longest=8192)
        lengths = [tokens for _, tokens, _ in asked]
        assert lengths == [102, *[1023, 1023, 8184, 8184] * 4]
        assert len({text for *_, text in asked}) == 17, "nothing is shared"
        rows = tally.sheet(HERE).lengths
        assert [(row.up_to, row.cost.responses) for row in rows] == [(1024, 8), (8192, 8)]

    def test_what_takes_long_is_measured_once(self):
        for budget, requests in ((400.0, 7), (2000.0, 13), (1e6, 17)):
            _, asked = self.measured(law(1e-2, 0.0, 1.0, 0.0), longest=8192, budget=budget)
            assert len(asked) == requests

    def test_what_takes_too_long_is_made_shorter(self):
        _, asked = self.measured(law(1e-3, 1e-6, 1.0, 0.0), longest=8192, budget=70.0)
        assert max(tokens for _, tokens, _ in asked) == 4092
        _, asked = self.measured(law(1.0, 1.0, 1.0, 0.0), longest=8192, budget=1.0)
        assert max(tokens for _, tokens, _ in asked) == 2046

    def test_requests_fit_the_model_and_texts_are_scored_where_nothing_is_decoded(self):
        _, asked = self.measured(NSA, longest=10**5, max_length=512, new_tokens=0)
        assert max(tokens for _, tokens, _ in asked) == 511
        assert {kind for kind, *_ in asked} == {"loglikelihood"}

    def test_an_estimate_from_it_says_so(self, plan_of):
        config, plan = plan_of(lengths=[16384])
        tally, _ = self.measured(DENSE, longest=4096)
        from nsa_eval.config import all_variants

        [variant] = all_variants(config)
        profile = profile_of(tally.sheet(HERE), variant, run="")
        found = estimate(plan, [], measured={"one": Measurement(profile=profile, seconds=12.3)})
        prefill, decode = DENSE
        real = 2 * (prefill(16376) + 7 * decode(16380))
        assert found.seconds.low < real < found.seconds.high
        assert any(
            "from a measurement of 12s just now (H, bfloat16, triton)" in x for x in estimate_lines(found)
        )

    def test_real_models_are_measured_with_the_clock_that_is_given(self, tiny_config):
        config = load_config(tiny_config())
        ticks = itertools.count(0, 7)
        said = []
        found = measure(config, make_plan(config), say=said.append, clock=lambda: next(ticks))
        assert list(found) == ["one", "two"]
        assert [one.seconds for one in found.values()] == [7, 7]
        assert said == ["one: loading", "one: measuring", "two: loading", "two: measuring"]
        for one in found.values():
            assert one.profile.conditions.device == "cpu"
            assert len(one.profile.points) == 2
            assert one.profile.kept_bytes == pytest.approx(2 * 8 * 4, rel=0.02), (
                "key and value of 8 in float32"
            )


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.2, 0.4, "up to 1s"),
        (0.0, 9000, "up to 2h 30m"),
        (71.0, 128.0, "1m 10s to 2m 10s"),
        (200, 350, "3m 20s to 5m 50s"),
        (5000, 9000, "1h 23m to 2h 30m"),
        (40000, 90000, "11h 00m to 25h 00m"),
        (10, 10, "10s"),
    ],
)
def test_times_are_no_finer_than_estimates_are(low, high, text):
    assert time_range(Range(low, high)) == text
    assert time_range(None) == "?"
