"""Capping and embedding of samples."""

import dataclasses
import json

import pytest

from nsa_reports import Reply, SampleLimits, ShownSample
from nsa_reports.samples import embed, left_out, pick, script_json


def _sample(name, *scores):
    return ShownSample(
        id=name, replies=tuple(Reply(model=str(i), text="", score=s) for i, s in enumerate(scores))
    )


def test_disagreements_come_first_then_low_scores():
    samples = [_sample("both right", 1, 1), _sample("both wrong", 0, 0), _sample("split", 1, 0)]
    assert [sample.id for sample in pick(samples, 2)] == ["split", "both wrong"]


def test_at_most_so_many_per_cell_are_kept_and_the_rest_is_counted(make_view, make_group):
    names = ("nsa", "dense")
    view = make_view(names, groups=(make_group(names, per_cell=20),), tasks=False)
    sections = embed(view.page(), SampleLimits(per_cell=3))
    assert {len(bundle["shown"]) for bundle in sections["g0"].values()} == {3}
    assert {bundle["total"] for bundle in sections["g0"].values()} == {20}
    assert left_out(sections) == (15 * 3, 15 * 20)


def test_ten_thousand_long_samples_fit_into_the_budget(make_view, make_group):
    names = ("nsa", "dense")
    group = make_group(names, lengths=(1024, 2048, 4096, 8192, 16384, 32768), depths=11, per_cell=152)
    assert len(group.samples) > 10_000
    limits = SampleLimits(total_bytes=400_000)
    sections = embed(make_view(names, groups=(group,), tasks=False).page(), limits)
    assert len(script_json(sections)) <= limits.total_bytes
    assert len(sections["g0"]) == 66  # every cell still has something to read
    assert all(bundle["shown"] for bundle in sections["g0"].values())


def test_texts_are_shortened_at_the_uninteresting_end(make_view, make_group):
    view = make_view(tasks=False)
    limits = SampleLimits(prompt_chars=10, reply_chars=3)
    record = embed(view.page(), limits)["g0"]["0,0"]["shown"][0]
    sample = next(s for s in view.heatmaps[0].samples if s.id == record["id"])
    assert record["prompt"].endswith(sample.prompt_end[-10:])
    assert "characters before" in record["prompt"]
    assert record["replies"][0]["text"].startswith(sample.replies[0].text[:3] + " […")


@pytest.mark.parametrize(
    ("seed", "embedded"),
    [(None, None), (7, 7), (2**53 - 1, 2**53 - 1), (5786598234761039877, "5786598234761039877")],
)
def test_a_seed_is_shown_to_its_last_digit(make_view, make_group, seed, embedded):
    group = make_group(("nsa", "dense"), lengths=(512,), depths=2, per_cell=1)
    samples = tuple(dataclasses.replace(sample, seed=seed) for sample in group.samples)
    view = make_view(groups=(dataclasses.replace(group, samples=samples),), tasks=False)
    assert embed(view.page(), SampleLimits())["g0"]["0,0"]["shown"][0]["seed"] == embedded


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="per_cell must be at least 1, got 0"):
        SampleLimits(per_cell=0)


@pytest.mark.parametrize(
    "text",
    ["</script><script>alert(1)</script>", "<!-- <script>", "-->", "]]>", "\u2028\u2029", "\ud800", "&lt;"],
)
def test_embedded_json_survives_any_text(text):
    encoded = script_json({"text": text})
    assert not set("<>&\u2028\u2029") & set(encoded)
    encoded.encode("ascii")
    assert json.loads(encoded) == {"text": text}


def test_embedded_json_refuses_nan():
    with pytest.raises(ValueError, match="JSON"):
        script_json({"score": float("nan")})
